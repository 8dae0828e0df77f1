"""Which boxes of a drawn image become labels, which become ignore regions, and why the others are dropped."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.errors import ModelError

MIN_SIDE = 1.0  # pixels
DIGITS = 4  # of a score; thresholds are compared with the rounded one, which is what the file says


@dataclass(frozen=True)
class LabelRules:
    """How a box's score decides about it.

    Attributes:
        score_threshold: a label from here on, for all classes.
        ignore_threshold: an ignore region from here up to the threshold, dropped below.
        suppress_iou: of boxes that overlap so much, whatever their classes, the best stays; 1 is off.
        keep_negatives: whether an image without a label is kept.
        per_class: category id -> its own threshold, instead of `score_threshold`; None for a class whose boxes are
            never labels, only ignore regions.
    """

    score_threshold: float
    ignore_threshold: float
    suppress_iou: float = 1.0
    keep_negatives: bool = False
    per_class: Mapping[int, float | None] | None = None

    @classmethod
    def of(cls, generation: Mapping, adapter: Mapping) -> LabelRules:
        """From `GenerationSettings` as a mapping and the adapter's part of a drawer's identity.

        Raises:
            ModelError: thresholds per class are wanted and the drawer has none.
        """
        per_class = None
        if generation["thresholds"] == "per_class":
            if not adapter.get("thresholds"):
                raise ModelError(
                    "generation.thresholds=per_class needs an adapter that carries thresholds. Run de adapter-report "
                    "on it, or set generation.thresholds=fixed."
                )
            per_class = {int(category_id): score for category_id, score in adapter["thresholds"].items()}
        names = ("score_threshold", "ignore_threshold", "suppress_iou", "keep_negatives")
        return cls(**{name: generation[name] for name in names}, per_class=per_class)

    def threshold_of(self, category_id: int) -> float:
        """The lowest score of a label of the class; infinite where there is none."""
        if self.per_class is None:
            return self.score_threshold
        score = self.per_class[category_id]
        return math.inf if score is None else score


def sort_out(
    boxes_xyxy: np.ndarray,
    scores: Sequence[float],
    category_ids: Sequence[int],
    size: tuple[int, int],
    rules: LabelRules,
) -> tuple[list[dict], Counter]:
    """Labels and ignore regions in the order given, and the number of the other boxes by reason.

    Args:
        boxes_xyxy: (N, 4) pixels; scores and category_ids: (N,).
        size: (width, height) of the image in pixels.

    Returns:
        Boxes as {category_id, bbox XYWH, iscrowd, score}, clipped to the image, and a Counter of the reasons
        bad_number, low_score, too_small and suppressed.
    """
    boxes, dropped = [], Counter()
    for corners, score, category_id in zip(boxes_xyxy, scores, category_ids, strict=True):
        corners, score, category_id = [float(v) for v in corners], round(float(score), DIGITS), int(category_id)
        if not all(map(math.isfinite, [*corners, score])) or not 0 <= score <= 1:
            dropped["bad_number"] += 1
            continue
        threshold, bbox = rules.threshold_of(category_id), clip_to_xywh(corners, *size)
        if score < min(threshold, rules.ignore_threshold):
            dropped["low_score"] += 1
        elif bbox is None:
            dropped["too_small"] += 1
        else:
            boxes.append({"category_id": category_id, "bbox": bbox, "iscrowd": int(score < threshold), "score": score})
    # An uncertain box that beats the others on its object leaves that object to be ignored: its class is in doubt.
    gone = suppressed(
        np.array([box["bbox"] for box in boxes]),
        np.array([box["score"] for box in boxes]),
        np.array([box["category_id"] for box in boxes]),
        rules.suppress_iou,
    )
    if gone.any():
        dropped["suppressed"] += int(gone.sum())
    return [box for box, out in zip(boxes, gone, strict=True) if not out], dropped


def suppressed(boxes_xywh: np.ndarray, scores: np.ndarray, category_ids: np.ndarray, iou: float) -> np.ndarray:
    """Class-agnostic non-maximum suppression: (N,) bool, True for a box that a better one overlaps by `iou` or more.

    Boxes (N, 4) XYWH, scores (N,), category ids (N,). Greedy, best score first, as torchvision.ops.nms, but without
    torch: whoever reads a run's records needs none. Of equal scores the lower category id, then the smaller numbers of
    the box come first, so that the order of the input decides nothing. `iou` 1 is off.
    """
    gone = np.zeros(len(scores), dtype=bool)
    if iou >= 1 or len(scores) < 2:
        return gone
    overlap = _pairwise_iou(boxes_xywh)
    for i in np.lexsort((*boxes_xywh.T[::-1], category_ids, -scores)):
        if not gone[i]:  # so nothing better overlaps it: what it overlaps is worse
            gone |= overlap[i] >= iou
            gone[i] = False
    return gone


def _pairwise_iou(boxes_xywh: np.ndarray) -> np.ndarray:
    low, high = boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]
    sides = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    common = sides.clip(min=0).prod(axis=2)
    areas = boxes_xywh[:, 2:].prod(axis=1)
    return common / (areas[:, None] + areas - common)


def clip_to_xywh(corners_xyxy: list[float], width: int, height: int) -> list[float] | None:
    """[x, y, w, h] in pixels to 2 decimals, inside the image also in floating point; None below 1 px a side.

    Works in hundredths of a pixel, so that the same box gives the same digits everywhere.
    """
    x, w = _span(corners_xyxy[0], corners_xyxy[2], width)
    y, h = _span(corners_xyxy[1], corners_xyxy[3], height)
    return [x, y, w, h] if min(w, h) >= MIN_SIDE else None


def _span(low: float, high: float, limit: int) -> tuple[float, float]:
    """(start, length) of an interval cut to 0..limit."""
    start, end = (round(min(max(v, 0.0), float(limit)) * 100) for v in (low, high))
    while start / 100 + (end - start) / 100 > limit:  # the sum of two rounded numbers may end a hair outside
        end -= 1
    return start / 100, (end - start) / 100
