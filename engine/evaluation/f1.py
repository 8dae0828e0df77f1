"""F1 of boxes at one IoU, all classes together: what choices on validation images are made by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.data.dataset import Dataset
from engine.evaluation.coco_map import match

IOU = 0.5


@dataclass(frozen=True)
class BestF1:
    """The lowest score that counts for the best F1, and that F1."""

    threshold: float
    f1: float


def scores_at_best_f1(data: Dataset, results: Sequence[Mapping]) -> BestF1:
    """Of all classes together, at IoU 0.5; one threshold for all classes."""
    matched = match(data, results, IOU).values()
    scores, hits = np.concatenate([m.scores for m in matched]), np.concatenate([m.hit for m in matched])
    if not len(scores):
        return BestF1(0.0, 0.0)
    order = np.argsort(-scores, kind="stable")
    scores, found = scores[order], np.cumsum(hits[order])
    f1 = 2 * found / (np.arange(1, len(found) + 1) + sum(m.objects for m in matched))
    f1[:-1][scores[:-1] == scores[1:]] = -1  # equal scores pass together
    return BestF1(float(scores[f1.argmax()]), float(f1.max()))


def box_scores(data: Dataset, results: Sequence[Mapping]) -> dict[str, float | None]:
    """Recall, precision and F1 of all boxes at IoU 0.5; None where there is nothing to divide by."""
    matched = match(data, results, IOU).values()
    hits, boxes = sum(int(m.hit.sum()) for m in matched), sum(len(m.hit) for m in matched)
    objects = sum(m.objects for m in matched)
    return {
        "recall": hits / objects if objects else None,
        "precision": hits / boxes if boxes else None,
        "f1": 2 * hits / (boxes + objects) if boxes + objects else None,
    }
