from __future__ import annotations

import contextlib
import dataclasses
import io
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from engine.errors import DatasetError
from engine.evaluation.coco_map import evaluate, match, precision_recall


def plain_coco(dataset, detections):
    """The usual way to call pycocotools, through its own loaders."""
    gt = {
        "images": [{"id": i.id, "width": i.width, "height": i.height} for i in dataset.images],
        "categories": [{"id": c.id, "name": c.name} for c in dataset.categories],
        "annotations": [
            {"id": a.id, "image_id": a.image_id, "category_id": a.category_id, "bbox": list(a.bbox_xywh),
             "area": a.area, "iscrowd": a.iscrowd}
            for a in dataset.annotations
        ],
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = gt
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes([dict(d) for d in detections]), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run


@pytest.mark.parametrize("seed", range(3))
def test_equals_pycocotools_used_by_hand(make_case, seed, capsys):
    dataset, detections = make_case(seed)
    metrics = evaluate(dataset, detections)
    assert capsys.readouterr().out == ""
    stats = plain_coco(dataset, detections).stats
    got = [metrics.map, metrics.map50, metrics.map75, metrics.map_small, metrics.map_medium, metrics.map_large]
    assert got == pytest.approx(stats[:6], abs=1e-12)
    assert metrics.ar100 == pytest.approx(stats[8], abs=1e-12)
    assert 0.05 < metrics.map < 0.95  # the case is neither trivial nor hopeless


def test_truth_as_detections_scores_one(make_case, make_detection):
    dataset, _ = make_case(1, crowds=False)
    perfect = [make_detection(a.image_id, a.category_id, a.bbox_xywh, 1.0) for a in dataset.annotations]
    metrics = evaluate(dataset, perfect)
    assert metrics.map == metrics.ar100 == pytest.approx(1.0)
    assert all(value == pytest.approx(1.0) for value in metrics.per_class.values())


def test_an_annotation_with_id_zero_is_found(make_dataset, make_detection):
    dataset = make_dataset([1], [(1, "a")], [(1, 1, (10, 10, 50, 50), 0)])
    zero = dataclasses.replace(dataset, annotations=(dataclasses.replace(dataset.annotations[0], id=0),))
    assert evaluate(zero, [make_detection(1, 1, (10, 10, 50, 50), 0.9)]).map == pytest.approx(1.0)


def test_no_detections_score_zero(make_case):
    dataset, _ = make_case(2)
    metrics = evaluate(dataset, [])
    assert metrics.map == metrics.map50 == metrics.ar100 == 0.0
    assert set(metrics.per_class.values()) == {0.0}


def test_no_ground_truth_is_undefined(make_dataset, make_detection):
    dataset = make_dataset([1, 2], [(1, "a")], [])
    metrics = evaluate(dataset, [make_detection(1, 1, (0, 0, 10, 10), 0.5)])
    assert (metrics.map, metrics.map50, metrics.map_small, metrics.ar100) == (None,) * 4
    assert metrics.per_class == {"a": None}


def test_absent_class_and_size_are_undefined_and_leave_the_mean_alone(make_dataset, make_detection):
    dataset = make_dataset([1], [(1, "a"), (2, "absent")], [(1, 1, (10, 10, 20, 20), 0)])
    found = make_detection(1, 1, (10, 10, 20, 20), 0.9)
    alarm = make_detection(1, 2, (100, 100, 200, 200), 0.9)
    metrics = evaluate(dataset, [found, alarm])
    assert metrics.map == pytest.approx(1.0)
    assert metrics.per_class["absent"] is None and metrics.per_class50["absent"] is None
    assert metrics.map_small == pytest.approx(1.0)
    assert metrics.map_medium is None and metrics.map_large is None


def test_empty_dataset_is_undefined(make_dataset):
    assert evaluate(make_dataset([], [], []), []).map is None
    assert evaluate(make_dataset([], [(1, "a")], []), []).per_class == {"a": None}


def test_detections_in_a_crowd_count_neither_way(make_dataset, make_detection):
    boxes = [(1, 1, (10, 10, 50, 50), 0), (1, 1, (200, 200, 150, 150), 1)]
    dataset = make_dataset([1], [(1, "a")], boxes)
    inside = [make_detection(1, 1, (210 + 20 * k, 210, 15, 15), 0.99) for k in range(5)]
    found = make_detection(1, 1, (10, 10, 50, 50), 0.5)
    assert evaluate(dataset, [*inside, found]).map == pytest.approx(1.0)
    assert evaluate(dataset, inside).map == 0.0
    assert evaluate(dataset, [found]).counts["ignored"] == 1
    assert len(match(dataset, [*inside, found])["a"].scores) == 1


def test_classes_of_one_name_stay_apart(make_dataset, make_detection):
    dataset = make_dataset([1], [(3, "cell"), (8, "cell")], [(1, 3, (0, 0, 9, 9), 0), (1, 8, (50, 50, 9, 9), 0)])
    per_class = evaluate(dataset, [make_detection(1, 3, (0, 0, 9, 9), 1.0)]).per_class
    assert per_class == {"cell (3)": pytest.approx(1.0), "cell (8)": 0.0}


BAD = [
    ({"image_id": 99}, "image_id 99"),
    ({"image_id": "1"}, "image_id '1'"),
    ({"image_id": True}, "image_id True"),
    ({"category_id": 7}, "category_id 7"),
    ({"score": math.nan}, "score nan"),
    ({"score": 1.2}, "score 1.2"),
    ({"score": -0.1}, "score -0.1"),
    ({"score": None}, "score None"),
    ({"bbox": [0, 0, math.inf, 5]}, "bbox"),
    ({"bbox": [0, 0, 0, 5]}, "no width"),
    ({"bbox": [0, 0, 5, -5]}, "no width"),
    ({"bbox": [0, 0, 5]}, "four"),
]


@pytest.mark.parametrize(("change", "word"), BAD)
def test_unusable_detections_are_refused(make_dataset, make_detection, change, word):
    dataset = make_dataset([1], [(1, "a")], [(1, 1, (0, 0, 10, 10), 0)])
    good = make_detection(1, 1, (0, 0, 10, 10), 0.5)
    with pytest.raises(DatasetError, match="detection 1") as error:
        evaluate(dataset, [good, {**good, **change}])
    assert word in str(error.value)
    missing = {key: value for key, value in good.items() if key not in change}
    with pytest.raises(DatasetError, match="has no"):
        evaluate(dataset, [missing])


def test_the_first_ten_faults_are_listed(make_dataset, make_detection):
    dataset = make_dataset([1], [(1, "a")], [])
    with pytest.raises(DatasetError) as error:
        evaluate(dataset, [make_detection(5, 1, (0, 0, 1, 1), 0.5)] * 13)
    assert str(error.value).count("image_id 5") == 10
    assert "and 3 more" in str(error.value)


def test_numpy_numbers_are_welcome(make_dataset):
    dataset = make_dataset([1], [(1, "a")], [(1, 1, (0, 0, 10, 10), 0)])
    box = np.array([0, 0, 10, 10], dtype=np.float32)
    detection = {"image_id": np.int64(1), "category_id": np.int32(1), "bbox": box, "score": np.float32(0.5)}
    assert evaluate(dataset, [detection]).map == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(3))
def test_the_curve_is_pycocotools_curve(make_case, seed):
    dataset, detections = make_case(seed)
    precision = plain_coco(dataset, detections).eval["precision"][0, :, :, 0, 2]
    scores = plain_coco(dataset, detections).eval["scores"][0, :, :, 0, 2]
    for k, curve in enumerate(precision_recall(dataset, detections, 0.5).values()):
        np.testing.assert_allclose(curve.precision, precision[:, k], atol=1e-12)
        np.testing.assert_allclose(curve.score, scores[:, k], atol=1e-12)
        assert curve.objects > 0


def test_no_curve_without_objects(make_dataset, make_detection):
    dataset = make_dataset([1], [(1, "a"), (2, "b")], [(1, 1, (0, 0, 9, 9), 0)])
    curves = precision_recall(dataset, [make_detection(1, 2, (0, 0, 9, 9), 0.5)])
    assert curves["b"] is None
    assert curves["a"].precision.tolist() == [0.0] * 101


def test_match_tells_hits_from_alarms(make_dataset, make_detection):
    dataset = make_dataset([1], [(1, "a")], [(1, 1, (0, 0, 100, 100), 0), (1, 1, (200, 200, 50, 50), 0)])
    detections = [
        make_detection(1, 1, (0, 0, 100, 60), 0.4),  # IoU 0.6, but the object is taken by a better score
        make_detection(1, 1, (0, 0, 100, 100), 0.9),
        make_detection(1, 1, (300, 0, 50, 50), 0.7),
        make_detection(1, 1, (200, 200, 50, 30), 0.6),  # IoU 0.6
    ]
    matched = match(dataset, detections, 0.5)["a"]
    assert matched.scores.tolist() == [0.9, 0.7, 0.6, 0.4]
    assert matched.hit.tolist() == [True, False, True, False]
    assert matched.detection.tolist() == [1, 2, 3, 0]
    assert matched.objects == 2
    assert match(dataset, detections, 0.75)["a"].hit.tolist() == [True, False, False, False]
