import dataclasses

import numpy as np
import pytest

from engine.evaluation.coco_map import evaluate
from engine.evaluation.curves import precision_recall_of
from engine.evaluation.matching import image_results


def test_a_curve_averages_to_ap50_of_seeds_and_classes(make_case):
    dataset, first = make_case(3)
    second = [d | {"score": d["score"] ** 2} for d in first[::2]]
    curves = precision_recall_of({"a": [image_results(dataset, d) for d in (first, second)]})
    assert curves["iou"] == 0.5
    scores = [evaluate(dataset, d) for d in (first, second)]
    assert np.mean(curves["arms"]["a"]["mean"]) == pytest.approx(np.mean([s.map50 for s in scores]), abs=1e-5)
    for name, curve in curves["arms"]["a"]["per_class"].items():
        assert len(curve) == 101 and curve == sorted(curve, reverse=True)
        assert np.mean(curve) == pytest.approx(np.mean([s.per_class50[name] for s in scores]), abs=1e-5)


def test_a_class_without_objects_has_no_curve_and_takes_no_part(make_dataset, make_detection):
    dataset = make_dataset([1], [(1, "a"), (2, "b")], [(1, 1, (0, 0, 9, 9), 0)])
    result = image_results(dataset, [make_detection(1, 1, (0, 0, 9, 9), 0.5), make_detection(1, 2, (0, 0, 9, 9), 0.5)])
    arm = precision_recall_of({"x": [result]})["arms"]["x"]
    assert arm["per_class"] == {"a": [1.0] * 101, "b": None} and arm["mean"] == [1.0] * 101
    empty = dataclasses.replace(dataset, annotations=())
    assert precision_recall_of({"x": [image_results(empty, [])]})["arms"]["x"]["mean"] is None


def test_another_iou_is_refused(make_case):
    dataset, detections = make_case(0, images=3)
    with pytest.raises(ValueError, match="IoU 0.5"):
        precision_recall_of({"a": [image_results(dataset, detections, [0.75])]})
