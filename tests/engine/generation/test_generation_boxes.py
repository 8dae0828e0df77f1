from __future__ import annotations

import numpy as np
import pytest
from stub_drawer import Drawn

from engine.generation.plan import PlannedItem
from engine.generation.records import ShardCounts, clip_to_xywh, count, drawn_record, failed_record

ITEM = PlannedItem(7, 1, "a.png", "", "", 1, 0.5, 7.5, 0.1, 40, 32)
RULES = {"score_threshold": 0.5, "ignore_threshold": 0.3, "keep_negatives": False}
INSIDE = (1, 1, 9, 9)


def record_of(*boxes, **rules) -> dict:
    """The record of an image with boxes (x1, y1, x2, y2, score)."""
    table = np.array(boxes, dtype=np.float32).reshape(-1, 5)
    drawn = Drawn(np.zeros((32, 40, 3), np.uint8), table[:, :4], table[:, 4], np.full(len(table), 3))
    return drawn_record(ITEM, drawn, RULES | rules, frozenset({3}))


@pytest.mark.parametrize(
    ("corners", "expected"),
    [
        ((1, 2, 11, 22), [1, 2, 10, 20]),
        ((-5, -5, 50, 50), [0, 0, 40, 32]),  # clipped
        ((1.004, 2.006, 11, 22), [1.0, 2.01, 10.0, 19.99]),  # 2 decimals
        ((39.5, 0, 60, 10), None),  # half a pixel is left
        ((50, 50, 60, 60), None),  # outside
        ((10, 10, 5, 20), None),  # corners swapped
        ((10, 10, 11, 11), [10, 10, 1, 1]),  # just large enough
        ((10, 10, 10.99, 20), None),
    ],
)
def test_boxes_are_clipped_and_rounded(corners, expected):
    assert clip_to_xywh(list(map(float, corners)), 40, 32) == expected


def test_a_rounded_box_is_inside_in_floating_point_too():
    rng = np.random.default_rng(0)
    touching = 0
    for _ in range(5000):
        width, height = (int(v) for v in rng.integers(8, 2000, 2))
        box = clip_to_xywh([*rng.uniform(0, 7, 2), *rng.uniform(7.9, 3000, 2)], width, height)
        if box is None:
            continue
        x, y, w, h = box
        assert x + w <= width and y + h <= height
        assert all(v == round(v, 2) for v in box)
        touching += x + w == width
    assert touching > 100


def test_scores_decide_between_label_ignore_region_and_nothing():
    record = record_of((*INSIDE, 0.5), (*INSIDE, 0.49), (*INSIDE, 0.3), (*INSIDE, 0.29))
    assert [(box["iscrowd"], box["score"]) for box in record["boxes"]] == [(0, 0.5), (1, 0.49), (1, 0.3)]
    assert record["dropped_boxes"] == {"low_score": 1}
    assert record["status"] == "kept"


@pytest.mark.parametrize("bad", [(np.nan, 1, 9, 9, 0.9), (1, 1, np.inf, 9, 0.9), (*INSIDE, np.nan), (*INSIDE, 1.5)])
def test_bad_numbers_are_dropped_and_counted(bad):
    record = record_of(bad, (*INSIDE, 0.9))
    assert len(record["boxes"]) == 1
    assert record["dropped_boxes"] == {"bad_number": 1}


@pytest.mark.parametrize("boxes", [(), [(*INSIDE, 0.4)], [(1, 1, 1.5, 9, 0.9)]])
def test_an_image_without_a_label_is_dropped_unless_negatives_are_kept(boxes):
    dropped = record_of(*boxes)
    assert (dropped["status"], dropped["reason"]) == ("dropped", "no_box")
    kept = record_of(*boxes, keep_negatives=True)
    assert kept["status"] == "kept"
    assert all(box["iscrowd"] for box in kept["boxes"])


@pytest.mark.parametrize(
    ("drawn", "word"),
    [
        (Drawn(np.zeros((40, 32, 3), np.uint8), np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)), "shape"),
        (Drawn(np.zeros((32, 40, 3)), np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)), "float64"),
        (Drawn(np.zeros((32, 40, 3), np.uint8), np.zeros((2, 4)), np.zeros(1), np.zeros(1, int)), "do not fit"),
        (Drawn(np.zeros((32, 40, 3), np.uint8), np.ones((1, 4)), np.ones(1), np.array([4])), "category 4"),
    ],
)
def test_a_drawing_that_is_not_what_was_planned_is_an_error(drawn, word):
    with pytest.raises(ValueError, match=word):
        drawn_record(ITEM, drawn, RULES, frozenset({3}))


def test_counts_add_up_and_come_back_from_json():
    records = [
        record_of((*INSIDE, 0.9), (*INSIDE, 0.4), (*INSIDE, 0.1)),
        record_of(),
        failed_record(ITEM, OSError("x")),
    ]
    counts = count(records)
    assert counts.adds_up
    assert (counts.planned, counts.kept, counts.boxes, counts.ignored) == (3, 1, 1, 1)
    assert counts.dropped == {"no_box": 1} and counts.failed == {"OSError": 1}
    assert ShardCounts.from_dict(counts.as_dict()) == counts
    assert (counts + counts).planned == 6 and (counts + counts).failed == {"OSError": 2}
    with pytest.raises(ValueError, match="count"):
        ShardCounts.from_dict(counts.as_dict() | {"kept": "1"})


def test_the_text_of_an_error_is_bounded_and_one_line():
    record = failed_record(ITEM, ValueError("a\nb" + "x" * 10_000))
    assert record["error"].startswith("a b") and len(record["error"]) <= 300
