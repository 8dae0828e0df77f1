"""How a comparison was made: the settings that decide most, and the command that makes it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from engine.config import as_dict
from engine.sections import LdmSettings, Settings

_SECTIONS = ("compare", "detector", "detr")  # what `de compare` reads, beside the device
_SEARCHED = ("revision", "resolution", "dtype")  # of `ldm`: what it reads where it searches for leaks with one
_EARLIER = ("adapt_ldm", "adapter", "generation", "review", "demo", "scale_up")  # sections of other steps
_LINES = (
    ("Trainings per arm", "{}", "compare.seeds"),
    ("Generated share of a batch", "{}", "compare.generated_share"),
    ("Detector", "{}, {} steps of {} images, learning rate {}",
     "detector.name detector.steps detector.batch_size detector.learning_rate"),
    ("What the detector sees", "{} px on the short edge", "detector.resolution"),
    ("Diffusion model", "{}", "ldm.id"),
    ("Generated data, its version", "{}", "pinned.version"),
    ("Encode ratios", "{} to {}", "drawn.strength_min drawn.strength_max"),
    ("Sampler", "{}, {} steps, guidance {} to {}", "drawn.sampler drawn.steps drawn.guidance_min drawn.guidance_max"),
    ("Prompt", "{}", "drawn.prompt"),
    ("Labels", "{} thresholds; fixed: {}, ignore regions from {}",
     "drawn.thresholds drawn.score_threshold drawn.ignore_threshold"),
)  # fmt: skip


def settings_that_matter(results: Mapping) -> list[tuple[str, str]]:
    """(what, value) in plain words, of the comparison and of the generation before it; lines whose settings are not
    all there are left out."""
    drawn = results["generated"].get("drawn_with") or {}
    known = {**comparison_settings(results["settings"]), "drawn": drawn, "ldm": drawn.get("ldm")}
    known["pinned"] = (results.get("trained_on") or {}).get("generated")
    rows = []
    for words, template, names in _LINES:
        values = [_setting(known, *name.split(".")) for name in names.split()]
        if None not in values:
            rows.append((words, template.format(*values)))
    return rows


def comparison_settings(settings: Mapping) -> dict:
    """Without the sections of earlier steps: those were given their own, which the comparison does not know."""
    return {section: values for section, values in settings.items() if section not in _EARLIER}


def _setting(settings: Mapping, section: str, key: str):
    entries = settings.get(section)
    return entries.get(key) if isinstance(entries, Mapping) else None


def compare_command(
    real: Path,
    generated: Path,
    out: Path,
    seeds: int,
    settings: Settings,
    further: Mapping[str, str] | None = None,
    ldm: LdmSettings | None = None,
) -> str:
    """`de compare` with every setting that it reads and that is not the default, in lines for a shell.

    ldm: the diffusion model that was searched for leaks with; its features depend on its revision, size and precision.
    """
    given, default = as_dict(settings), as_dict(Settings())
    lines = [["de", "compare", "--real", real, "--generated", generated, "--out", out, "--seeds", seeds]]
    lines += [["--arm", f"{name}={folder}"] for name, folder in (further or {}).items()]
    lines += [["--ldm", ldm.id]] if ldm else []
    if ldm:
        given["ldm"] |= {key: value for key, value in as_dict(ldm).items() if key in _SEARCHED}
    read = ("device", *_SEARCHED) if ldm else ("device",)
    keys = [*(("ldm", key) for key in read), *((section, key) for section in _SECTIONS for key in given[section])]
    for section, key in keys:
        value = given[section][key]
        # A model recommends settings of its own, so that what is the default here need not be what it would get.
        stated = section == "ldm" and key in _SEARCHED and value is not None
        if (stated or value != default[section][key]) and (section, key) != ("compare", "seeds"):
            lines.append(["--set", f"{section}.{key}={json.dumps(value)}"])
    return " \\\n  ".join(shlex.join(str(word) for word in line) for line in lines)
