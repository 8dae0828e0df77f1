"""The baselines by name, and the one way to run them: whole or not at all, with a manifest that tells how."""

from __future__ import annotations

import dataclasses
import json
import shutil

from engine.baselines.copy_paste import copy_paste
from engine.baselines.inpaint import inpaint
from engine.baselines.manifest import decisions_of, finished, manifest_of
from engine.baselines.relabelling import by_attention, by_detector
from engine.baselines.request import Baseline, BaselineRequest
from engine.errors import ConfigError
from engine.generation.durable import write_durably
from engine.generation.relabel import refuse_existing

_LABELS = ("generation.suppress_iou", "generation.keep_negatives")
_FIXED = ("generation.score_threshold", "generation.ignore_threshold")
BASELINES: dict[str, Baseline] = {
    "copy_paste": Baseline(copy_paste, ("data", "images"), ("generation.jpeg_quality",)),
    "inpaint": Baseline(
        inpaint, ("data", "images"), ("generation", "ldm.resolution", "ldm.dtype", "ldm.compile"), draws=True
    ),
    "detector": Baseline(by_detector, ("data", "generated"), ("detector", *_FIXED, *_LABELS)),
    "attention": Baseline(
        by_attention, ("generated",), ("ldm.resolution", "ldm.dtype", "generation.domain", *_LABELS), "val", draws=True
    ),
}


def make_baseline(name: str, request: BaselineRequest) -> tuple[dict, bool]:
    """Write the dataset folder `request.out`, for `de compare --arm`, with manifest.json beside annotations.json.

    Returns:
        The manifest, and whether the same request was finished before: then nothing is done.

    Raises:
        ConfigError: no such baseline, or something that it needs was not given.
        DatasetError: `out` holds something else or was changed since, or a dataset cannot be used.
        ModelError: the diffusion model cannot be used. RunFailed: see the baseline.
    """
    if name not in BASELINES:
        raise ConfigError(f"There is no baseline '{name}'. Those that are: {', '.join(BASELINES)}.")
    baseline, out = BASELINES[name], request.out
    missing = [field for field in baseline.needs if getattr(request, field) is None]
    if missing:
        raise ConfigError(f"The baseline '{name}' needs {' and '.join(missing)}.")
    if not (out / "manifest.json").is_file():
        refuse_existing(out)
    decisions = decisions_of(name, baseline, request)
    manifest = finished(out, decisions)
    if manifest is not None:
        return manifest, True
    refuse_existing(out)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    outcome = baseline.make(dataclasses.replace(request, out=partial))
    manifest = manifest_of(partial, decisions, outcome)
    write_durably(partial / "manifest.json", json.dumps(manifest, indent=2, sort_keys=True).encode("ascii") + b"\n")
    partial.rename(out)
    return manifest, False
