"""Precision against recall of every arm of a comparison, at IoU 0.5: what the report draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from engine.evaluation.coco_map import curve_of
from engine.evaluation.matching import ImageResults

IOU = 0.5


def precision_recall_of(scored: Mapping[str, Sequence[ImageResults]]) -> dict:
    """Curves over COCO's 101 recalls (0, 0.01, ... 1) with COCO's interpolated precision, 0 to 1.

    Args:
        scored: arm -> its results, one per seed; their first IoU must be 0.5.

    Returns:
        {iou, arms: {arm: {mean, per_class: {class: curve}}}}: a curve is the mean over seeds, `mean` that over the
        classes too; None where the test images hold no object. The mean of a curve over its recalls is AP50.

    Raises:
        ValueError: results at another IoU.
    """
    return {"iou": IOU, "arms": {arm: _arm(results) for arm, results in scored.items()}}


def _arm(results: Sequence[ImageResults]) -> dict:
    if any(not np.isclose(result.ious[0], IOU) for result in results):
        raise ValueError(f"curves are drawn at IoU {IOU}, and these results begin at {results[0].ious[0]}")
    curves: dict[str, np.ndarray | None] = {}
    for k, name in enumerate(results[0].classes):
        seeds = [curve_of(result.matches["all"][k]) for result in results]
        curves[name] = None if seeds[0] is None else np.mean([curve.precision for curve in seeds], axis=0)
    defined = [curve for curve in curves.values() if curve is not None]
    return {
        "mean": _listed(np.mean(defined, axis=0) if defined else None),
        "per_class": {name: _listed(curve) for name, curve in curves.items()},
    }


def _listed(curve: np.ndarray | None) -> list[float] | None:
    return None if curve is None else [round(float(value), 5) for value in curve]
