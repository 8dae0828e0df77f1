from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import make_settings
from stub_drawer import Drawn, StubDrawer
from torchvision.ops import nms

from engine.config import as_dict
from engine.data.dataset import read_dataset
from engine.errors import ModelError
from engine.generation.labels import LabelRules, clip_to_xywh, sort_out, suppressed
from engine.generation.plan import PlannedItem, make_plan
from engine.generation.records import ShardCounts, count, drawn_record, failed_record

ITEM = PlannedItem(7, 1, "a.png", "", "", 1, 0.5, 7.5, 0.1, 40, 32)
RULES = LabelRules(score_threshold=0.5, ignore_threshold=0.3)
INSIDE = (1, 1, 9, 9)


def record_of(*boxes, **rules) -> dict:
    """The record of an image with boxes (x1, y1, x2, y2, score)."""
    table = np.array(boxes, dtype=np.float32).reshape(-1, 5)
    drawn = Drawn(np.zeros((32, 40, 3), np.uint8), table[:, :4], table[:, 4], np.full(len(table), 3))
    return drawn_record(ITEM, drawn, dataclasses.replace(RULES, **rules), frozenset({3}))


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


def crowded(seed: int, number: int = 40):
    """Boxes around few places, so that many overlap: (N, 4) XYWH, scores with ties, category ids."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 3, (number, 2)) * 10.0 + rng.uniform(0, 3, (number, 2))
    boxes = np.concatenate([corner, rng.uniform(6, 9, (number, 2))], axis=1)
    return boxes, rng.integers(1, 12, number) / 12, rng.choice([2, 5, 9], number)


def overlap_of(a, b) -> float:
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    common = max(w, 0) * max(h, 0)
    return common / (a[2] * a[3] + b[2] * b[3] - common)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("iou", [0.3, 0.5, 0.7])
def test_of_boxes_on_one_object_the_best_stays(seed, iou):
    boxes, scores, ids = crowded(seed)
    gone = suppressed(boxes, scores, ids, iou)
    kept = np.flatnonzero(~gone)
    assert 0 < gone.sum() < len(gone)
    assert scores[kept].max() == scores.max()
    assert all(overlap_of(boxes[a], boxes[b]) < iou for a in kept for b in kept if a != b)
    for i in np.flatnonzero(gone):  # each gave way to one that is as good, at least, and stays
        assert any(overlap_of(boxes[i], boxes[k]) >= iou and scores[k] >= scores[i] for k in kept)


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_the_boxes_does_not_decide_which_one_stays(seed):
    boxes, scores, ids = crowded(seed)
    boxes[5], scores[5], ids[5] = boxes[6], scores[6], ids[6] % 7 + 1  # equal but for the class
    gone = suppressed(boxes, scores, ids, 0.5)
    order = np.random.default_rng(seed).permutation(len(scores))
    assert (suppressed(boxes[order], scores[order], ids[order], 0.5) == gone[order]).all()


@pytest.mark.parametrize("seed", range(5))
def test_suppression_agrees_with_torchvision(seed):
    boxes, _, ids = crowded(seed)
    scores = np.random.default_rng(seed).permutation(len(boxes)) / len(boxes)  # no ties: those it leaves to chance
    corners = torch.from_numpy(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1))
    expected = set(nms(corners, torch.from_numpy(scores), 0.6).tolist())
    assert set(np.flatnonzero(~suppressed(boxes, scores, ids, 0.6))) == expected


def test_suppression_of_nothing_and_suppression_that_is_off():
    assert suppressed(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), 0.5).shape == (0,)
    assert not suppressed(np.array([[1.0, 1, 5, 5]] * 2), np.array([0.9, 0.8]), np.array([1, 2]), 1.0).any()


def test_several_classes_on_one_object_leave_one_label_and_are_counted():
    table = np.array([(1, 1, 9, 9, 0.6), (1, 1, 9, 10, 0.9), (1, 1, 9, 9, 0.4), (20, 1, 30, 9, 0.4)])
    boxes, dropped = sort_out(
        table[:, :4], table[:, 4], [2, 5, 9, 5], (40, 32), dataclasses.replace(RULES, suppress_iou=0.7)
    )
    assert [(b["category_id"], b["iscrowd"]) for b in boxes] == [(5, 0), (5, 1)]
    assert dropped == {"suppressed": 2}


def test_each_class_has_its_own_threshold_and_one_without_gives_ignore_regions_only():
    rules = dataclasses.replace(RULES, per_class={2: 0.8, 5: 0.1, 9: None})
    cases = [(2, 0.8), (2, 0.79), (2, 0.29), (5, 0.1), (5, 0.09), (9, 1.0), (9, 0.2)]
    corners = np.array([(4 * i, 1, 4 * i + 3, 9) for i in range(len(cases))])
    boxes, dropped = sort_out(corners, [score for _, score in cases], [i for i, _ in cases], (40, 32), rules)
    assert [(b["category_id"], b["score"], b["iscrowd"]) for b in boxes] == [
        (2, 0.8, 0),
        (2, 0.79, 1),
        (5, 0.1, 0),
        (9, 1.0, 1),
    ]
    assert dropped == {"low_score": 3}


@pytest.mark.parametrize("seed", range(20))
def test_every_box_has_one_fate(seed):
    rng = np.random.default_rng(seed)
    number = int(rng.integers(0, 60))
    corner = rng.uniform(-5, 40, (number, 2))
    corners = np.concatenate([corner, corner + rng.uniform(0, 15, (number, 2))], axis=1)
    scores = np.where(rng.random(number) < 0.1, np.nan, rng.random(number))
    rules = dataclasses.replace(RULES, suppress_iou=0.5, per_class={2: 0.7, 5: 0.2, 9: None})
    boxes, dropped = sort_out(corners, scores, rng.choice([2, 5, 9], number), (40, 32), rules)
    assert len(boxes) + dropped.total() == number
    assert set(dropped) <= {"bad_number", "low_score", "too_small", "suppressed"}
    assert all(box["score"] >= rules.threshold_of(box["category_id"]) for box in boxes if not box["iscrowd"])


def test_the_plan_pins_the_thresholds_and_the_rules_come_out_of_it(bench):
    identity = StubDrawer(bench.adapter).identity
    adapter = {**identity["adapter"], "thresholds": {"2": 0.8, "5": 0.4, "9": None}}
    dataset, settings = read_dataset(bench.data, "train"), make_settings(thresholds="per_class", suppress_iou=0.6)
    plan = make_plan(dataset, 3, 1, settings, identity | {"adapter": adapter})
    moved = {**adapter, "thresholds": {"2": 0.8, "5": 0.5, "9": None}}
    assert make_plan(dataset, 3, 1, settings, identity | {"adapter": moved}).digest != plan.digest
    rules = LabelRules.of(plan.spec["settings"]["generation"], plan.spec["identity"]["adapter"])
    assert [rules.threshold_of(i) for i in (2, 5, 9)] == [0.8, 0.4, math.inf]
    assert (rules.suppress_iou, rules.ignore_threshold, rules.keep_negatives) == (0.6, 0.2, False)


def test_thresholds_per_class_without_any_end_the_run_and_fixed_ones_do_not_look_at_them(bench):
    with pytest.raises(ModelError, match="adapter-report"):
        bench.generate(thresholds="per_class")
    generation = as_dict(make_settings().generation)
    assert LabelRules.of(generation, {"thresholds": {"2": 0.9}}).threshold_of(2) == 0.4


def test_a_floor_under_the_adapter_is_no_part_of_the_plan(bench):
    dataset, identity = read_dataset(bench.data, "train"), StubDrawer(bench.adapter).identity
    plans = [make_plan(dataset, 3, 1, make_settings(min_adapter_map=floor), identity) for floor in (0.0, 0.3)]
    assert plans[0].digest == plans[1].digest
