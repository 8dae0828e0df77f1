"""`results.json`: every figure of a comparison with the seeds, sizes and settings behind it.

Layout (lists "per seed" follow the order of `seeds`; a score is 0 to 1, or null where undefined):

    arms: {name: {map, map50, map75, map_small, map_medium, map_large, ar100: [per seed],
                  per_class, per_class50: {class: [per seed]}, loss_curve: [[[step, loss], ...] per seed],
                  train_images, generated_share, seconds: [per seed], notes: {note, steps},
                  trained_on: [{dataset: folder's name, split, images, sha256, share of a batch while it serves,
                                first, last: of the steps, as shares; weights_sha256 or null}, ...],
                  detector: {setting: value} other than settings.detector says,
                  validation: {the same scores and per_class, per_class50, of the validation images}; it is there only
                  where the dataset has a validation split}}
    arm_order, baseline, treatment: names of arms
    deltas: {arm: {mean, ci95: [low, high], verdict, per_seed, seed_error, image_error, lasting_error,
                   seeds_to_settle, resamples, baseline, treatment}} of every arm against its baseline; delta: the one
                   of `treatment`
    against: {arm: the same of the treatment against that arm}
    further: {arm: folder}; leakage: see leakage.py; scaling: see scaling.py, where there is a scaling curve
    trained_on: {real, generated, further: {arm}} of {folder, content: {what: sha256}, version: a tag or null}
    seeds, versions, adapter (its card), gallery
    data: {split: {images, objects, ignored: regions, sha256}}
    generated: {planned, kept, dropped: {reason: n}, failed: {reason: n}, boxes, ignored, dropped_boxes: {reason: n},
                rejected: {reason: n} of the kept by review, objects_per_class: {class: n},
                drawn_with: {ldm, seed, ...}: model and settings of the generation, from its manifest, ...}
    searched_with: the diffusion model of the search for leaks, or null
    settings: of the comparison; what they say of the steps before it may differ from what those were given

and, where the comparison has them (files written before do not):

    precision_recall: as `curves.precision_recall_of`
    delta_by_score: {map50, map75: as delta, per_class: {class: the same of its AP, or null where fewer than two test
        images hold the class}} of the two arms of `delta`; each interval stands alone: of 20 classes without any
        difference one is expected to exclude zero
    changes: of single test images between the two arms of `delta`, as `per_image.largest_changes`
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engine.data.files import write_atomically
from engine.errors import DatasetError
from engine.evaluation.coco_map import Metrics
from engine.evaluation.results_check import SCORES, check_results
from engine.evaluation.statistics import Difference


@dataclass(frozen=True)
class Arm:
    """One way of training: its test scores, losses ((step, loss) pairs) and training seconds, each once per seed.

    train_images: different images that it may draw; generated_share: of its batches, over all steps; validation: its
    scores on the validation split, once per seed too, or empty without one; trained_on: see the module; detector:
    settings that are other than usual.
    """

    name: str
    metrics: Sequence[Metrics]
    loss_curve: Sequence[Sequence[tuple[int, float]]]
    train_images: int
    generated_share: float
    seconds: Sequence[float]
    notes: Mapping = field(default_factory=dict)
    validation: Sequence[Metrics] = ()
    trained_on: Sequence[Mapping] = ()
    detector: Mapping = field(default_factory=dict)


def build_results(
    arms: Sequence[Arm],
    differences: Mapping[str, Difference],
    *,
    baseline: str,
    treatment: str,
    baselines: Mapping[str, str] | None = None,
    against: Mapping[str, Difference] | None = None,
    by_score: Mapping | None = None,
    seeds: Sequence[int],
    settings: Mapping,
    versions: Mapping,
    data: Mapping,
    generated: Mapping | None = None,
    adapter: Mapping | None = None,
    gallery: Sequence[Mapping] = (),
) -> dict:
    """Put together and check.

    Args:
        differences: arm -> its difference to its baseline, for every other arm.
        baselines: the baselines of arms that are measured against another one.
        against: arm -> the treatment's difference to it.
        by_score: as `resampled.differences_by_score`, of the treatment.

    Raises ValueError as `check_results` does.
    """
    deltas = {
        name: {**difference.as_dict(), "baseline": (baselines or {}).get(name, baseline), "treatment": name}
        for name, difference in differences.items()
    }
    if treatment not in deltas:
        raise ValueError(f"results: no difference is given for the treatment '{treatment}'")
    results = {
        "arms": {arm.name: _arm(arm) for arm in arms},
        "arm_order": [arm.name for arm in arms],
        "baseline": baseline,
        "treatment": treatment,
        "delta": deltas[treatment],
        "deltas": deltas,
        "against": {
            name: {**difference.as_dict(), "baseline": name, "treatment": treatment}
            for name, difference in (against or {}).items()
        },
        "seeds": list(seeds),
        "settings": dict(settings),
        "versions": dict(versions),
        "data": dict(data),
        "generated": dict(generated or {}),
        "adapter": dict(adapter or {}),
        "gallery": [dict(item) for item in gallery],
    }
    if by_score:
        pair = {key: deltas[treatment][key] for key in ("baseline", "treatment")}
        by_class = {name: one and {**one.as_dict(), **pair} for name, one in by_score["per_class"].items()}
        others = {name: {**one.as_dict(), **pair} for name, one in by_score.items() if name != "per_class"}
        results["delta_by_score"] = {**others, "per_class": by_class}
    check_results(results)
    return results


def write_results(path: Path, results: Mapping) -> Path:
    """Check and write atomically; equal results give equal bytes. Returns `path`."""
    check_results(results)
    text = json.dumps(results, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode("utf-8"))
    return path


def read_results(path: Path) -> dict:
    """Read and check; raises DatasetError for a file that is missing, torn or inconsistent."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        check_results(results)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise DatasetError(f"{path} is no usable results file ({error}): run the comparison again") from error
    return results


def _scores(each: Sequence[Metrics]) -> dict:
    """Lists with an entry per seed."""
    scores = {score: [getattr(metrics, score) for metrics in each] for score in SCORES}
    by_class = {
        key: {name: [getattr(metrics, key)[name] for metrics in each] for name in getattr(each[0], key)}
        for key in ("per_class", "per_class50")
        if each
    }
    return {**scores, **by_class}


def _arm(arm: Arm) -> dict:
    return {
        **_scores(arm.metrics),
        "loss_curve": [[[int(step), float(loss)] for step, loss in curve] for curve in arm.loss_curve],
        "train_images": int(arm.train_images),
        "generated_share": float(arm.generated_share),
        "seconds": [float(value) for value in arm.seconds],
        "notes": dict(arm.notes),
        "trained_on": [dict(source) for source in arm.trained_on],
        "detector": dict(arm.detector),
        **({"validation": _scores(arm.validation)} if arm.validation else {}),
    }
