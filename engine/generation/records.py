"""From what was drawn to what is kept: the fate of each item, its boxes, and counts that add up."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from engine.generation.plan import PlannedItem

if TYPE_CHECKING:
    from engine.generation.draw import Drawn

KEPT, DROPPED, FAILED = "kept", "dropped", "failed"
MIN_SIDE = 1.0  # pixels
MAX_REASON = 300  # characters of an error's text that are kept


@dataclass
class ShardCounts:
    """What became of planned items: planned = kept + dropped + failed.

    Attributes:
        dropped, failed: number of images by reason (for failed: the type of the error).
        boxes, ignored: labels and ignore regions on kept images.
        dropped_boxes: number of boxes on drawn images by reason.
    """

    planned: int = 0
    kept: int = 0
    dropped: Counter = field(default_factory=Counter)
    failed: Counter = field(default_factory=Counter)
    boxes: int = 0
    ignored: int = 0
    dropped_boxes: Counter = field(default_factory=Counter)

    def __add__(self, other: ShardCounts) -> ShardCounts:
        return ShardCounts(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    @property
    def adds_up(self) -> bool:
        """Whether every planned item has exactly one fate."""
        return self.planned == self.kept + self.dropped.total() + self.failed.total()

    def as_dict(self) -> dict:
        """Json-ready, the reasons in alphabetical order."""
        return {k: dict(sorted(v.items())) if isinstance(v, Counter) else v for k, v in vars(self).items()}

    @classmethod
    def from_dict(cls, content: dict) -> ShardCounts:
        """The inverse of `as_dict`. Raises TypeError or ValueError on anything else."""
        counts = cls(**{k: Counter(v) if isinstance(v, dict) else v for k, v in content.items()})
        numbers = [counts.planned, counts.kept, counts.boxes, counts.ignored]
        for reasons in (counts.dropped, counts.failed, counts.dropped_boxes):
            numbers += Counter.values(reasons)
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError("a count is not a whole number from 0")
        return counts


def count(records: Iterable[dict]) -> ShardCounts:
    """Counts of item records."""
    total = ShardCounts()
    for record in records:
        total.planned += 1
        total.dropped_boxes.update(record.get("dropped_boxes", {}))
        if record["status"] == KEPT:
            total.kept += 1
            ignored = sum(1 for box in record["boxes"] if box["iscrowd"])
            total.ignored += ignored
            total.boxes += len(record["boxes"]) - ignored
        elif record["status"] == DROPPED:
            total.dropped[record["reason"]] += 1
        else:
            total.failed[record["reason"]] += 1
    return total


def failed_record(item: PlannedItem, error: Exception) -> dict:
    """The record of an item that could not be drawn."""
    text = " ".join(str(error).split())[:MAX_REASON]
    return {"item": item.item, "status": FAILED, "reason": type(error).__name__, "error": text}


def drawn_record(item: PlannedItem, drawn: Drawn, rules: dict, category_ids: frozenset[int]) -> dict:
    """The record of a drawn image: kept with its boxes, or dropped for want of one.

    Args:
        rules: score_threshold, ignore_threshold and keep_negatives, as in `GenerationSettings`.
        category_ids: the ids that a box may have.

    Raises:
        ValueError: what was drawn does not have the planned size, or arrays do not fit each other.
    """
    _check(item, drawn, category_ids)
    boxes, dropped_boxes = _sorted_out(drawn, item.width, item.height, rules)
    record = {"item": item.item, "status": KEPT, "width": item.width, "height": item.height, "boxes": boxes}
    if not rules["keep_negatives"] and all(box["iscrowd"] for box in boxes):
        record = {"item": item.item, "status": DROPPED, "reason": "no_box"}
    return record | ({"dropped_boxes": dict(sorted(dropped_boxes.items()))} if dropped_boxes else {})


def _check(item: PlannedItem, drawn: Drawn, category_ids: frozenset[int]) -> None:
    image, count_ = np.asarray(drawn.image), len(drawn.scores)
    if image.shape != (item.height, item.width, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"drew an image of shape {image.shape}, {image.dtype}; planned ({item.height}, {item.width}, 3), uint8"
        )
    if np.shape(drawn.boxes_xyxy) != (count_, 4) or np.shape(drawn.category_ids) != (count_,):
        raise ValueError(
            f"{count_} scores do not fit boxes of shape {np.shape(drawn.boxes_xyxy)} "
            f"and categories of shape {np.shape(drawn.category_ids)}"
        )
    unknown = sorted({int(i) for i in drawn.category_ids} - category_ids)
    if unknown:
        raise ValueError(f"box of category {unknown[0]}, which the dataset does not have")


def _sorted_out(drawn: Drawn, width: int, height: int, rules: dict) -> tuple[list[dict], Counter]:
    """(labels and ignore regions in the drawer's order, number of other boxes by reason)."""
    kept, dropped = [], Counter()
    for corners, score, category_id in zip(drawn.boxes_xyxy, drawn.scores, drawn.category_ids, strict=True):
        corners, score = [float(v) for v in corners], round(float(score), 4)
        if not all(map(math.isfinite, [*corners, score])) or not 0 <= score <= 1:
            dropped["bad_number"] += 1
            continue
        bbox = clip_to_xywh(corners, width, height)
        if score < rules["ignore_threshold"]:
            dropped["low_score"] += 1
        elif bbox is None:
            dropped["too_small"] += 1
        else:
            crowd = int(score < rules["score_threshold"])
            kept.append({"category_id": int(category_id), "bbox": bbox, "iscrowd": crowd, "score": score})
    return kept, dropped


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
