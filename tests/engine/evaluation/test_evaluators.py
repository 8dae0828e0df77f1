"""hotcoco against pycocotools: not close, the same."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest

from engine.errors import DatasetError
from engine.evaluation import coco_map
from engine.evaluation.coco_map import evaluate
from engine.evaluation.reference import has_hotcoco, run_hotcoco

pytest.importorskip("hotcoco")


def assert_identical(dataset, detections):
    precision, recall = run_hotcoco(dataset, detections)
    expected_precision, expected_recall = coco_map._run_pycocotools(dataset, detections, "bbox")
    np.testing.assert_array_equal(precision, expected_precision)
    np.testing.assert_array_equal(recall, expected_recall)
    fast, reference = (evaluate(dataset, detections, evaluator=name) for name in ("hotcoco", "pycocotools"))
    assert fast == reference


def problem(make_dataset, make_detection, seed):
    """Tied scores, boxes on a grid, areas at COCO's limits, ignore regions, empty images, more than 100 detections."""
    rng = np.random.default_rng(seed)
    ties, grid = rng.random(2) < 0.5
    categories = [(int(c), f"c{c}") for c in rng.choice(np.arange(1, 100), rng.integers(1, 6), replace=False)]
    images = [int(i) for i in rng.permutation(np.arange(1, 200))[: rng.integers(1, 12)]]
    boxes, detections = [], []

    def box():
        limits = [8, 31.9, 32, 32.1, 95.9, 96, 96.1, 150]
        side = float(rng.choice(limits) if rng.random() < 0.4 else rng.uniform(3, 150))
        drawn = [*rng.uniform(0, 400 - side, 2), side, side * float(rng.choice([1, 0.8]))]
        return [float(max(1, round(v))) for v in drawn] if grid else [float(v) for v in drawn]

    def found(image, category, at):
        score = float(rng.random())
        detections.append(make_detection(image, category, at, round(score, 1) if ties else score))

    for image in images:
        for _ in range(rng.integers(0, 6) if rng.random() < 0.9 else 110):
            at, category = box(), categories[rng.integers(len(categories))][0]
            boxes.append((image, category, at, int(rng.random() < 0.2)))
            for _ in range(rng.integers(0, 4)):
                shift = rng.integers(-2, 3, 2) if grid else rng.normal(0, 0.1 * at[2], 2)
                guess = category if rng.random() < 0.8 else categories[rng.integers(len(categories))][0]
                found(image, guess, [at[0] + shift[0], at[1] + shift[1], at[2], at[3]])
        for _ in range(150 if rng.random() < 0.15 else 0):
            found(image, categories[0][0], box())
    dataset = make_dataset(images, categories, boxes)
    areas = rng.choice([1.0, 32.0**2, 96.0**2], len(boxes))
    own = rng.random(len(boxes)) < 0.7
    annotations = (dataclasses.replace(a, area=a.area if keep else float(area))
                   for a, keep, area in zip(dataset.annotations, own, areas, strict=True))  # fmt: skip
    return dataclasses.replace(dataset, annotations=tuple(annotations)), detections


@pytest.mark.parametrize("seed", range(40))
def test_the_same_numbers_to_the_last_bit(make_dataset, make_detection, seed):
    assert_identical(*problem(make_dataset, make_detection, seed))


@pytest.mark.parametrize("seed", range(3))
def test_the_same_numbers_on_plain_cases(make_case, seed):
    assert_identical(*make_case(seed))


BOX = (10, 10, 50, 50)
EDGES = {
    "no images": ([], [(1, "a")], [], []),
    "nothing at all": ([], [], [], []),
    "no classes": ([1], [], [], []),
    "no ground truth": ([1], [(1, "a")], [], [(1, 1, BOX, 0.5)]),
    "no detections": ([1], [(1, "a")], [(1, 1, BOX, 0)], []),
    "neither": ([1, 2], [(1, "a")], [], []),
    "only ignore regions": ([1], [(1, "a")], [(1, 1, BOX, 1)], [(1, 1, BOX, 0.5)]),
    "a class that is absent": ([1], [(1, "a"), (2, "b")], [(1, 1, BOX, 0)], [(1, 1, BOX, 0.9), (1, 2, BOX, 0.9)]),
    "all scores equal": ([1, 2], [(1, "a")], [(1, 1, BOX, 0), (2, 1, BOX, 0)], [(i, 1, BOX, 0.5) for i in (2, 1, 2)]),
    "scores 0 and 1": ([1], [(1, "a")], [(1, 1, BOX, 0)], [(1, 1, BOX, 0.0), (1, 1, (200, 0, 9, 9), 1.0)]),
    "a box on the limit of IoU": ([1], [(1, "a")], [(1, 1, (0, 0, 10, 10), 0)], [(1, 1, (0, 0, 10, 5), 0.5)]),
    "two objects of one box": ([1], [(1, "a")], [(1, 1, BOX, 0)] * 2, [(1, 1, BOX, 0.5)] * 3),
}


@pytest.mark.parametrize("name", EDGES)
def test_the_same_numbers_on_edges(make_dataset, make_detection, name):
    images, categories, boxes, found = EDGES[name]
    dataset, detections = make_dataset(images, categories, boxes), [make_detection(*one) for one in found]
    fast = evaluate(dataset, detections, evaluator="hotcoco")
    assert fast == evaluate(dataset, detections, evaluator="pycocotools")
    if boxes or found:
        assert_identical(dataset, detections)


def test_the_fast_one_is_taken_for_boxes_and_refuses_the_same(make_case, make_detection, monkeypatch):
    dataset, detections = make_case(0)
    assert has_hotcoco()
    monkeypatch.setattr(coco_map, "_run_pycocotools", None)
    assert evaluate(dataset, detections).map > 0
    with pytest.raises(DatasetError, match="image_id 99999"):
        evaluate(dataset, [make_detection(99999, 2, BOX, 0.5)])


def test_without_hotcoco_pycocotools_scores(make_case, monkeypatch):
    dataset, detections = make_case(0)
    expected = evaluate(dataset, detections)
    monkeypatch.setitem(sys.modules, "hotcoco", None)  # importing it fails now
    monkeypatch.setattr(coco_map, "has_hotcoco", lambda: False)
    assert evaluate(dataset, detections) == expected
