"""Frozen, validated settings, one section per stage. `params.yaml` is their file; unknown keys are errors.

Four layers, later ones win: the defaults of `engine.sections`, what the diffusion model's own folder recommends
(`engine.json`: measured values of a small model), `params.yaml`, and `--set section.key=value`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from engine.errors import ConfigError
from engine.sections import DETECTORS, DETECTRON2, HEADS, MOST_STYLES, SIZES, SMALL, Settings


def load_settings(
    params: Path | None = None, overrides: Iterable[str] = (), ldm_folder: Path | None = None
) -> Settings:
    """Read and check all layers.

    Args:
        params: a yaml file of sections; None for none.
        overrides: strings `section.key=value`, the value in yaml.
        ldm_folder: a diffusion model's folder whose engine.json may recommend settings.

    Raises:
        ConfigError: unknown section or key, wrong type, value out of range; names the layer.
    """
    layers: list[tuple[str, Mapping]] = []
    if ldm_folder is not None and (ldm_folder / "engine.json").is_file():
        layers.append((str(ldm_folder / "engine.json"), _read_recommended(ldm_folder / "engine.json")))
    if params is not None:
        layers.append((str(params), _read_yaml(params)))
    layers += [(f"--set {text}", _parse_override(text)) for text in overrides]
    values: dict[str, dict] = {}
    origin: dict[tuple[str, str], str] = {}
    for where, layer in layers:
        for section, entries in layer.items():
            section_type = _sections().get(section)
            if section_type is None:
                raise ConfigError(f"{where}: unknown section '{section}'. Sections: {', '.join(_sections())}.")
            if not isinstance(entries, Mapping):
                raise ConfigError(f"{where}: section '{section}' must hold keys and values, not {entries!r}.")
            for key, value in entries.items():
                values.setdefault(section, {})[key] = _checked(section_type, section, key, value, where)
                origin[section, key] = where
    sections = {name: section_type(**values.get(name, {})) for name, section_type in _sections().items()}
    settings = Settings(**sections)
    _check_ranges(settings)
    return settings


def as_dict(settings) -> dict:
    """A settings dataclass as plain json-ready values; secrets are left empty."""
    return json.loads(json.dumps(dataclasses.asdict(_without_secrets(settings))))


def settings_from(content: Mapping, where: str) -> Settings:
    """The inverse of `as_dict`. A file may have been changed since it was written, so every value is checked again.

    Raises:
        ConfigError: as `load_settings`; `where` names the file. KeyError, TypeError, AttributeError: another layout.
    """
    sections = {
        name: kind(**{key: _checked(kind, name, key, value, where) for key, value in content[name].items()})
        for name, kind in _sections().items()
    }
    settings = Settings(**sections)
    _check_ranges(settings)
    return settings


def named_weight(text: str, setting: str = "class_weights") -> tuple[str, float]:
    """An entry NAME=WEIGHT of `generation.class_weights` or `.size_weights`.

    Raises:
        ConfigError: it is not one, or the weight is no finite number from 0.
    """
    name, found, number = text.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not (found and name and 0 <= weight < math.inf):
        what = {"class_weights": "CLASS=WEIGHT", "size_weights": "SIZE=WEIGHT"}[setting]
        raise ConfigError(f"generation.{setting}: write {what} with a weight from 0, not {text!r}.")
    return name, weight


def digest(value) -> str:
    """sha256 of any json-ready value or settings dataclass, independent of key order."""
    if dataclasses.is_dataclass(value):
        value = as_dict(value)
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def _without_secrets(settings):
    changes = {}
    for entry in dataclasses.fields(settings):
        value = getattr(settings, entry.name)
        if dataclasses.is_dataclass(value):
            changes[entry.name] = _without_secrets(value)
        elif entry.metadata.get("secret"):
            changes[entry.name] = entry.default
    return dataclasses.replace(settings, **changes)


def _sections() -> dict[str, type]:
    return {name: kind for name, kind in typing.get_type_hints(Settings).items()}


def _read_yaml(path: Path) -> Mapping:
    if not path.is_file():
        raise ConfigError(f"No settings file {path}. Give --params FILE, or run without to use the defaults.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not readable yaml: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path} must hold sections, found {type(content).__name__}.")
    return content


def _read_recommended(path: Path) -> Mapping:
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("settings", {})
    except (ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} is not readable json: {error}") from None


def _parse_override(text: str) -> Mapping:
    path, found, value = text.partition("=")
    section, dot, key = path.strip().partition(".")
    if not (found and dot and section and key):
        raise ConfigError(f"--set {text}: write section.key=value, for example generation.score_threshold=0.4.")
    try:
        return {section: {key: yaml.safe_load(value)}}
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"--set {text[:100]}: the value is not readable: {error}") from None


def _checked(section_type: type, section: str, key: str, value, where: str):
    """The value in its field's type, or a ConfigError."""
    fields = {f.name: f for f in dataclasses.fields(section_type)}
    if key not in fields:
        raise ConfigError(f"{where}: unknown key '{section}.{key}'. Keys: {', '.join(fields)}.")
    kind, limits = typing.get_type_hints(section_type)[key], fields[key].metadata
    name = f"{where}: {section}.{key}"
    if typing.get_origin(kind) is types.UnionType:
        if value is None:
            return None
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is tuple:
        numbers = typing.get_args(kind)[0] is float
        wanted, words = ((int, float), "numbers") if numbers else ((str,), "words")
        if not isinstance(value, (list, tuple)) or not all(type(v) in wanted and v == v for v in value):
            raise ConfigError(f"{name} must be a list of {words}, not {value!r}.")
        return tuple(float(v) for v in value) if numbers else tuple(value)
    if kind is float and isinstance(value, str):
        try:  # yaml reads 1e-4 as a word
            value = float(value)
        except ValueError:
            pass
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{name} must be {kind.__name__}, not {value!r}.")
    if isinstance(value, float) and not (value == value and abs(value) != float("inf")):
        raise ConfigError(f"{name} must be a finite number, not {value!r}.")
    if limits.get("choices") and value not in limits["choices"]:
        raise ConfigError(f"{name} must be one of {', '.join(limits['choices'])}, not {value!r}.")
    if limits.get("low") is not None and value < limits["low"]:
        raise ConfigError(f"{name} must be at least {limits['low']}, not {value!r}.")
    if limits.get("high") is not None and value > limits["high"]:
        raise ConfigError(f"{name} must be at most {limits['high']}, not {value!r}.")
    return value


def _check_ranges(settings: Settings) -> None:
    generation = settings.generation
    for name in ("strength", "guidance", "eta"):
        low, high = getattr(generation, f"{name}_min"), getattr(generation, f"{name}_max")
        if low > high:
            raise ConfigError(f"generation.{name}_min ({low}) is above generation.{name}_max ({high}).")
    for setting in ("class_weights", "size_weights"):
        names = Counter(named_weight(text, setting)[0] for text in getattr(generation, setting))
        for name in [name for name, times in names.items() if times > 1]:
            raise ConfigError(f"generation.{setting} gives '{name}' {names[name]} weights. Give one.")
    for text in generation.size_weights:
        if (name := named_weight(text, "size_weights")[0]) not in SIZES:
            raise ConfigError(f"generation.size_weights: there is no size '{name}', only {', '.join(SIZES)}.")
    if len(generation.styles) > MOST_STYLES:
        raise ConfigError(f"generation.styles are {len(generation.styles)}, at most {MOST_STYLES} are dealt out.")
    if generation.text_to_image and generation.prompt == "none" and not (generation.style or generation.styles):
        raise ConfigError("generation.text_to_image draws from words, and generation.prompt is none: give words.")
    for section in ("adapter", "detector"):
        width = getattr(settings, section).width
        if width % 32:  # the heads normalise their channels in 32 groups
            raise ConfigError(f"{section}.width must be a multiple of 32, not {width}.")
    if any(not 0 < multiple < math.inf for multiple in settings.compare.scaling):
        raise ConfigError(
            f"compare.scaling must be multiples above 0 (0 is the baseline), not {list(settings.compare.scaling)}."
        )
    name, behind = settings.detector.name, settings.detector.name.partition(":")[2].strip()
    heads = [head for head in HEADS if head != "maskrcnn"]  # a comparison gives no masks to learn from
    named = (name.startswith(DETECTRON2) and behind) or (name.startswith(SMALL) and behind in heads)
    if name not in DETECTORS and not named:
        raise ConfigError(
            f"detector.name must be one of {', '.join(DETECTORS)}, {SMALL}HEAD with a head of {', '.join(heads)}, or "
            f"{DETECTRON2}CONFIG, not {name!r}."
        )
    head = settings.adapter.head
    if head not in HEADS and not head.removeprefix(DETECTRON2).strip() or not head.startswith((*HEADS, DETECTRON2)):
        raise ConfigError(f"adapter.head must be one of {', '.join(HEADS)}, or {DETECTRON2}CONFIG, not {head!r}.")
    if head == "maskrcnn" and settings.adapter.augment == "strong":
        raise ConfigError(
            "adapter.augment=strong gives no masks, which adapter.head=maskrcnn learns from: standard does."
        )
    webhook = settings.scale_up.webhook
    if webhook and not webhook.startswith(("https://", "http://")):
        raise ConfigError("scale_up.webhook must be a URL that begins with https:// or http://, or empty.")
    if generation.ignore_threshold > generation.score_threshold:
        raise ConfigError(
            f"generation.ignore_threshold ({generation.ignore_threshold}) is above "
            f"generation.score_threshold ({generation.score_threshold})."
        )
