"""Thresholds from data: what they promise holds on the set they were chosen on, and nothing is promised from chance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.adapter.thresholds import (
    MIN_ACCEPTED,
    MIN_BOXES,
    OperatingPoints,
    check_quality,
    choose_thresholds,
    label_thresholds,
    matched_by_class,
    pool,
    without_suppressed,
)
from engine.data.dataset import Annotation, Category, Dataset, ImageRecord
from engine.errors import ModelError

WANTED = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)


def build(boxes, images=60, classes=(2, 5, 9)) -> Dataset:
    """boxes: (image id, category id, (x, y, w, h), iscrowd)."""
    return Dataset(
        Path("nowhere"),
        "val",
        tuple(ImageRecord(i, f"{i}.png", 400, 400, {}) for i in range(1, images + 1)),
        tuple(Category(c, f"class {c}") for c in classes),
        tuple(Annotation(n, i, c, b, b[2] * b[3], crowd, {}) for n, (i, c, b, crowd) in enumerate(boxes, start=1)),
    )


def case(seed: int) -> tuple[Dataset, list[dict]]:
    """Classes 2 and 5 with many objects (2 is found well, 5 badly), class 9 with a few; some crowds; ties in scores."""
    rng = np.random.default_rng(seed)
    boxes, found = [], []
    for image in range(1, 61):
        for category in (2, 5) + ((9,) if image < 6 else ()):
            box = (*(float(v) for v in rng.uniform(0, 300, 2)), 60.0, 50.0)
            crowd = int(rng.random() < 0.1)
            boxes.append((image, category, box, crowd))
            if rng.random() < 0.9:
                found.append(hit(image, category, box, rng.beta(5, 2)))
            for _ in range(int(rng.integers(0, 2 if category == 2 else 6))):
                false = (*(float(v) for v in rng.uniform(0, 300, 2)), 40.0, 40.0)
                found.append(hit(image, category, false, rng.beta(2, 4)))
    return build(boxes), found


def hit(image, category, box, score) -> dict:
    return {"image_id": image, "category_id": category, "bbox": list(box), "score": round(float(score), 2)}


def measured(matched, score) -> tuple[int, int]:
    """(right, all) boxes of a class from a score on."""
    accepted = matched.scores >= score
    return int(matched.hit[accepted].sum()), int(accepted.sum())


@pytest.mark.parametrize("wanted", WANTED)
def test_a_threshold_reaches_the_wanted_precision_on_its_own_set_and_no_lower_one_does(wanted):
    dataset, detections = case(3)
    chosen, matched = choose_thresholds(dataset, detections, wanted), matched_by_class(dataset, detections)
    for category_id in (2, 5):
        entry = chosen["per_class"][str(category_id)]
        assert not entry["pooled"] and entry["boxes"] >= MIN_BOXES
        scores = sorted({d["score"] for d in detections if d["category_id"] == category_id})
        reached = []
        for score in scores:
            right, accepted = measured(matched[category_id], score)
            if accepted >= MIN_ACCEPTED and right / accepted >= wanted:
                reached.append(score)
        assert entry["score"] == (min(reached) if reached else None)
        if reached:
            right, accepted = measured(matched[category_id], entry["score"])
            assert entry["precision"] == right / accepted >= wanted
            assert entry["recall"] == right / entry["boxes"]


@pytest.mark.parametrize("seed", range(2))
def test_lowering_the_wanted_precision_never_raises_a_threshold(seed):
    dataset, detections = case(seed)
    chosen = [choose_thresholds(dataset, detections, wanted)["per_class"] for wanted in WANTED]
    for category_id in ("2", "5", "9"):
        scores = [per_class[category_id]["score"] for per_class in chosen]
        numbers = [np.inf if score is None else score for score in scores]
        assert numbers == sorted(numbers)


def test_a_class_with_few_boxes_takes_the_pooled_threshold_and_the_card_says_so():
    dataset, detections = case(0)
    chosen = choose_thresholds(dataset, detections, 0.8)
    entry = chosen["per_class"]["9"]
    assert 0 < entry["boxes"] < MIN_BOXES and entry["pooled"]
    assert entry["score"] == chosen["pooled"]["score"] is not None
    right, accepted = measured(matched_by_class(dataset, detections)[9], entry["score"])
    assert entry["precision"] == right / accepted
    assert chosen["pooled"]["boxes"] == sum(e["boxes"] for e in chosen["per_class"].values())


def test_a_class_that_never_reaches_the_precision_has_no_threshold_but_says_its_best():
    boxes = [(i, 2, (10.0, 10.0, 50.0, 50.0), 0) for i in range(1, 61)]
    right = [hit(i, 2, b, 0.5) for i, _, b, _ in boxes]
    wrong = [hit(i, 2, (200.0, 200.0, 50.0, 50.0), 0.6) for i in range(1, 61)]
    entry = choose_thresholds(build(boxes), right + wrong, 0.8)["per_class"]["2"]
    assert (entry["score"], entry["precision"], entry["recall"]) == (None, 0.5, 1.0)


def test_a_few_lucky_boxes_are_no_evidence():
    boxes = [(i, 2, (10.0, 10.0, 50.0, 50.0), 0) for i in range(1, 61)]
    lucky = [hit(i, 2, boxes[0][2], 0.9) for i in range(1, MIN_ACCEPTED)]
    wrong = [hit(i, 2, (200.0, 200.0, 50.0, 50.0), 0.6) for i in range(1, 61)]
    assert choose_thresholds(build(boxes), lucky + wrong, 0.8)["per_class"]["2"]["score"] is None
    more = [*lucky, hit(MIN_ACCEPTED, 2, boxes[0][2], 0.9)]
    assert choose_thresholds(build(boxes), more + wrong, 0.8)["per_class"]["2"]["score"] == 0.9


def test_boxes_in_ignore_regions_count_neither_way():
    boxes = [(i, 2, (10.0, 10.0, 50.0, 50.0), 0) for i in range(1, 31)]
    regions = [(i, 2, (200.0, 200.0, 100.0, 100.0), 1) for i in range(1, 31)]
    right = [hit(i, 2, b, 0.5) for i, _, b, _ in boxes]
    inside = [hit(i, 2, (210.0, 210.0, 40.0, 40.0), 0.9) for i in range(1, 31)]
    entry = choose_thresholds(build(boxes + regions), right + inside, 1.0)["per_class"]["2"]
    assert (entry["score"], entry["precision"], entry["recall"], entry["boxes"]) == (0.5, 1.0, 1.0, 30)


def test_what_generation_suppresses_is_not_held_against_a_class():
    boxes = [(i, 2, (10.0, 10.0, 50.0, 50.0), 0) for i in range(1, 31)]
    right = [hit(i, 2, b, 0.9) for i, _, b, _ in boxes]
    other = [hit(i, 5, b, 0.8) for i, _, b, _ in boxes]
    assert choose_thresholds(build(boxes), right + other, 0.8)["pooled"]["precision"] == 1.0
    assert choose_thresholds(build(boxes), right + other, 0.5)["pooled"]["score"] == 0.8
    assert choose_thresholds(build(boxes), right + other, 0.5, suppress_iou=0.7)["pooled"]["precision"] == 1.0
    assert without_suppressed(right + other, 0.7) == right
    assert without_suppressed(right + other, 1.0) == right + other


@pytest.mark.parametrize("boxes", [[], [(1, 2, (10.0, 10.0, 50.0, 50.0), 0)] * 30])
def test_without_any_box_nothing_is_promised(boxes):
    chosen = choose_thresholds(build(boxes), [], 0.8)
    assert {e["score"] for e in chosen["per_class"].values()} == {None}
    assert {e["precision"] for e in chosen["per_class"].values()} == {None}
    assert chosen["pooled"]["recall"] == 0.0
    with pytest.raises(ModelError, match="no boxes at all"):
        label_thresholds({"thresholds": chosen}, Path("a"))


def test_points_accept_equal_scores_together():
    dataset, detections = case(1)
    points = OperatingPoints.of(pool(matched_by_class(dataset, detections).values()))
    assert (np.diff(points.scores) < 0).all() and (np.diff(points.recall) >= 0).all()
    assert points.at(1.01) == (None, 0.0)
    assert points.at(0.0) == (points.precision[-1], points.recall[-1])


def test_generation_takes_the_cards_thresholds_or_says_what_to_do():
    dataset, detections = case(0)
    chosen = choose_thresholds(dataset, detections, 0.8)
    scores = label_thresholds({"thresholds": chosen}, Path("a"))
    assert scores == {k: v["score"] for k, v in chosen["per_class"].items()}
    with pytest.raises(ModelError, match="de adapter-report"):
        label_thresholds({}, Path("a"))


@pytest.mark.parametrize("card", [{}, {"validation": None}, {"validation": {"map": None}}])
def test_a_floor_refuses_an_adapter_that_was_not_measured(card):
    check_quality(card, 0.0, Path("a"))
    with pytest.raises(ModelError, match="not known"):
        check_quality(card, 0.1, Path("a"))


def test_a_floor_refuses_a_worse_adapter_with_both_numbers():
    check_quality({"validation": {"map": 0.3}}, 0.3, Path("a"))
    with pytest.raises(ModelError, match=r"0\.299.*0\.3"):
        check_quality({"validation": {"map": 0.299}}, 0.3, Path("a"))
