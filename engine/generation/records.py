"""From what was drawn to what is kept: the fate of each item, its boxes, and counts that add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from engine.generation.labels import LabelRules, sort_out
from engine.generation.plan import PlannedItem

if TYPE_CHECKING:
    from engine.generation.draw import Drawn

KEPT, DROPPED, FAILED = "kept", "dropped", "failed"
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


def drawn_record(item: PlannedItem, drawn: Drawn, rules: LabelRules, category_ids: frozenset[int]) -> dict:
    """The record of a drawn image: kept with its boxes, or dropped for want of one.

    Args:
        rules: how a score decides about a box.
        category_ids: the ids that a box may have.

    Raises:
        ValueError: what was drawn does not have the planned size, or arrays do not fit each other.
    """
    _check(item, drawn, category_ids)
    size = (item.width, item.height)
    boxes, dropped_boxes = sort_out(drawn.boxes_xyxy, drawn.scores, drawn.category_ids, size, rules)
    record = {"item": item.item, "status": KEPT, "width": item.width, "height": item.height, "boxes": boxes}
    if not rules.keep_negatives and all(box["iscrowd"] for box in boxes):
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
