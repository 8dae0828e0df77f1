"""manifest.json of a baseline's dataset: what decided it and what came of it, by the names that generation uses.

So a comparison reads it as it reads that of a generated dataset, and `check_unchanged` finds what was changed since.
"""

from __future__ import annotations

import json
from pathlib import Path

from engine.baselines.request import Baseline, BaselineRequest, Outcome
from engine.config import as_dict
from engine.curation.training_labels import accepted_images
from engine.data.dataset import Dataset, read_dataset
from engine.detection.zoo.weights import weights_sha256
from engine.generation.durable import sha256_of
from engine.generation.integrity import check_unchanged, images_sha256
from engine.generation.plan import deciding_settings
from engine.ldm.folder import find_ldm, identify

VERSION = 1
_NO_MATTER = {"detector": ("save_every",)}  # settings that change how the work is done and nothing that comes of it


def decisions_of(name: str, baseline: Baseline, request: BaselineRequest) -> dict:
    """Everything that decides a baseline's dataset, json-ready. Reads every picture and every weight.

    Raises:
        DatasetError, ModelError: a dataset or the diffusion model cannot be read.
    """
    data = None if request.data is None else read_dataset(request.data, baseline.split)
    generated = None if request.generated is None else accepted_images(request.generated)
    identity = {}
    if baseline.draws:
        folder = find_ldm(request.ldm.id, request.ldm.revision)
        identity["ldm"] = identify(request.ldm.id, request.ldm.revision, folder).as_dict()
    if "detector" in baseline.settings:
        identity["detector_weights"] = weights_sha256(request.settings.detector)
    decisions = {
        "version": VERSION,
        "baseline": name,
        "seed": request.seed,
        "images": request.images,
        "data": data and data.digest(),
        "generated": generated and generated.digest(),
        "identity": identity,
        "settings": _settings(baseline.settings, request, data),
    }
    return json.loads(json.dumps(decisions))


def manifest_of(folder: Path, decisions: dict, outcome: Outcome) -> dict:
    """The manifest of a dataset that was just written to `folder`."""
    made = read_dataset(folder, "annotations")
    return {
        **decisions,
        "chosen": dict(outcome.chosen),
        "counts": {
            "planned": outcome.images + outcome.dropped,
            "kept": outcome.images,
            "dropped": {"no_box": outcome.dropped} if outcome.dropped else {},
            "failed": {},
            "boxes": outcome.boxes,
            "ignored": outcome.ignored,
        },
        "annotations_sha256": sha256_of(folder / "annotations.json"),
        "images_sha256": images_sha256(folder, made.images),
    }


def finished(out: Path, decisions: dict) -> dict | None:
    """The manifest of `out` if it was made by the same decisions, else None.

    Raises:
        DatasetError: it was, and was changed since.
    """
    try:
        manifest = json.loads((out / "manifest.json").read_bytes())
        same = {key: manifest[key] for key in decisions} == decisions
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not same:
        return None
    check_unchanged(out, read_dataset(out, "annotations").images)
    return manifest


def _settings(names: tuple[str, ...], request: BaselineRequest, data: Dataset | None) -> dict:
    everything = as_dict(request.settings)
    chosen: dict[str, dict] = {}
    for name in names:
        section, _, key = name.partition(".")
        if key:
            chosen.setdefault(section, {})[key] = everything[section][key]
        elif section == "generation":
            chosen[section] = deciding_settings(data, request.settings.generation)
        else:
            left_out = _NO_MATTER.get(section, ())
            chosen[section] = {k: v for k, v in everything[section].items() if k not in left_out}
    return chosen
