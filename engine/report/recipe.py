"""How a comparison was made: the settings that decide most, and the command that makes it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from engine.config import Settings, as_dict

_SECTIONS = ("compare", "detector")  # what `de compare` reads, beside the device
_LINES = (
    ("Trainings per arm", "{}", "compare.seeds"),
    ("Generated share of a batch", "{}", "compare.generated_share"),
    ("Detector", "{}, {} steps of {} images, learning rate {}",
     "detector.name detector.steps detector.batch_size detector.learning_rate"),
    ("What the detector sees", "{} px on the short edge", "detector.resolution"),
    ("Diffusion model", "{}", "ldm.id"),
    ("Adapter", "{}, {} steps of {} images, learning rate {}",
     "adapter.head adapter.steps adapter.batch_size adapter.learning_rate"),
    ("Encode ratios", "{} to {}", "generation.strength_min generation.strength_max"),
    ("Sampler", "{}, {} steps, guidance {} to {}",
     "generation.sampler generation.steps generation.guidance_min generation.guidance_max"),
    ("Prompt", "{}", "generation.prompt"),
    ("Labels", "{} thresholds; fixed: {}, ignore regions from {}",
     "generation.thresholds generation.score_threshold generation.ignore_threshold"),
    ("Review", "mean score from {}, duplicates within {} bits", "review.min_mean_score review.duplicate_distance"),
)  # fmt: skip


def settings_that_matter(settings: Mapping) -> list[tuple[str, str]]:
    """(what, value) in plain words; lines whose settings are not all there are left out."""
    rows = []
    for words, template, names in _LINES:
        values = [_setting(settings, *name.split(".")) for name in names.split()]
        if None not in values:
            rows.append((words, template.format(*values)))
    return rows


def _setting(settings: Mapping, section: str, key: str):
    entries = settings.get(section)
    return entries.get(key) if isinstance(entries, Mapping) else None


def compare_command(real: Path, generated: Path, out: Path, seeds: int, settings: Settings) -> str:
    """`de compare` with every setting that it reads and that is not the default, in lines for a shell."""
    given, default = as_dict(settings), as_dict(Settings())
    lines = [["de", "compare", "--real", real, "--generated", generated, "--out", out, "--seeds", seeds]]
    keys = [("ldm", "device"), *((section, key) for section in _SECTIONS for key in given[section])]
    for section, key in keys:
        value = given[section][key]
        if value != default[section][key] and (section, key) != ("compare", "seeds"):
            lines.append(["--set", f"{section}.{key}={json.dumps(value)}"])
    return " \\\n  ".join(shlex.join(str(word) for word in line) for line in lines)
