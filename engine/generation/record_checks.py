"""Whether a shard's records are what a drawing of its items writes: a sha256 that fits says only who wrote last."""

from __future__ import annotations

from engine.generation.plan import Plan
from engine.generation.records import DROPPED, FAILED, KEPT

NUMBERS = {int, float}


def check_records(records: list, plan: Plan, shard: int) -> None:
    """Refuse records that are not of a shard's items, in order, each with one fate and boxes inside its image.

    Args:
        records: as they were parsed, of any type.

    Raises:
        ValueError: names the item.
    """
    numbers = plan.numbers_of(shard)
    if len(records) != len(numbers):
        raise ValueError(f"there are {len(records)} for {len(numbers)} items")
    sources = plan.rows["source"][numbers[0] - 1 : numbers[-1]].tolist()
    category_ids = {category[0] for category in plan.categories}
    for record, number, source in zip(records, numbers, sources, strict=True):
        fault = _fault(record, number, plan.sources[source][2:], category_ids)
        if fault:
            raise ValueError(f"item {number}: {fault}")


def _fault(record, number: int, size: tuple[int, int], category_ids: set[int]) -> str | None:
    if type(record) is not dict or type(record.get("item")) is not int or record["item"] != number:
        return "its record is missing or another item's"
    counts = record.get("dropped_boxes", {})
    if type(counts) is not dict or any(type(n) is not int or n < 0 for n in counts.values()):
        return "its dropped boxes are no counts"
    status = record.get("status")
    if status == KEPT:
        if (record.get("width"), record.get("height")) != size:
            return f"it is not of the planned size {size}"
        boxes = record.get("boxes")
        return None if type(boxes) is list and all(_is_box(box, size, category_ids) for box in boxes) else "a bad box"
    wanted = {DROPPED: ("reason",), FAILED: ("reason", "error")}.get(status) if type(status) is str else None
    if wanted is None or any(type(record.get(name)) is not str for name in wanted):
        return "it is neither kept, nor dropped or failed for a reason"
    return None


def _is_box(box, size: tuple[int, int], category_ids: set[int]) -> bool:
    """As `sort_out` makes them."""
    try:
        x, y, w, h = box["bbox"]
        category_id, iscrowd, score = box["category_id"], box["iscrowd"], box["score"]
        return (
            type(category_id) is int
            and category_id in category_ids
            and type(iscrowd) is int
            and (iscrowd == 0 or iscrowd == 1)
            and {type(x), type(y), type(w), type(h), type(score)} <= NUMBERS  # True is a number to Python
            and 0 <= score <= 1
            and x >= 0
            and y >= 0
            and w > 0
            and h > 0
            and x + w <= size[0]  # so it is finite too
            and y + h <= size[1]
        )
    except (KeyError, TypeError, ValueError):
        return False
