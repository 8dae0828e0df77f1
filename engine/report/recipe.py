"""How a comparison was made: the settings that decide most, and the command that makes it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from engine.config import as_dict
from engine.sections import LdmSettings, Settings

_SECTIONS = ("compare", "detector")  # what `de compare` reads, beside the device
_SEARCHED = ("revision", "resolution", "dtype")  # of `ldm`: what it reads where it searches for leaks with one
_WIDTH = 118  # of the command's lines
_EARLIER = ("adapt_ldm", "adapter", "detr", "generation", "review", "demo", "scale_up")  # sections of other steps
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
    """`de compare` with every setting that it reads, in lines for a shell: what goes without saying differs from one
    params.yaml, and from one model's recommendations, to the next.

    ldm: the diffusion model that was searched for leaks with; its features depend on its revision, size and precision.
    """
    given = as_dict(settings)
    lines = [["de", "compare", "--real", real, "--generated", generated, "--out", out, "--seeds", seeds]]
    lines += [["--arm", f"{name}={folder}"] for name, folder in (further or {}).items()]
    lines += [["--ldm", ldm.id]] if ldm else []
    if ldm:
        given["ldm"] |= {key: value for key, value in as_dict(ldm).items() if key in _SEARCHED}
    read = ("device", *_SEARCHED) if ldm else ("device",)
    keys = [*(("ldm", key) for key in read), *((section, key) for section in _SECTIONS for key in given[section])]
    for section, key in keys:
        if given[section][key] is None or (section, key) == ("compare", "seeds"):
            continue
        words = ["--set", f"{section}.{key}={json.dumps(given[section][key])}"]
        if lines[-1][0] == "--set" and len(shlex.join([*lines[-1], *words])) <= _WIDTH:
            lines[-1] += words
        else:
            lines.append(words)
    return " \\\n  ".join(shlex.join(str(word) for word in line) for line in lines)
