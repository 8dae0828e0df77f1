from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from engine.evaluation.coco_map import evaluate
from engine.evaluation.matching import image_results


def duplicated(dataset, detections, counts):
    """The dataset in which image i occurs counts[i] times, each copy with its own id."""
    images, annotations, found = [], [], []
    for image, count in zip(sorted(dataset.images, key=lambda image: image.id), counts, strict=True):
        for _ in range(int(count)):
            new = len(images) + 1
            images.append(dataclasses.replace(image, id=new))
            annotations += [
                dataclasses.replace(a, image_id=new, id=len(annotations) + n)
                for n, a in enumerate((a for a in dataset.annotations if a.image_id == image.id), start=1)
            ]
            found += [{**d, "image_id": new} for d in detections if d["image_id"] == image.id]
    return dataclasses.replace(dataset, images=tuple(images), annotations=tuple(annotations)), found


def none_to_nan(values):
    return [np.nan if value is None else value for value in values]


def assert_same(results, metrics, counts):
    ap = results.average_precision(counts)[0]
    np.testing.assert_allclose(ap.mean(axis=1), none_to_nan(metrics.per_class.values()), atol=1e-9)
    np.testing.assert_allclose(ap[:, 0], none_to_nan(metrics.per_class50.values()), atol=1e-9)
    by_size = {"small": metrics.map_small, "medium": metrics.map_medium, "large": metrics.map_large}
    for area, value in {"all": metrics.map, **by_size}.items():
        got = results.mean_average_precision(counts, area)[0]
        np.testing.assert_allclose(got, none_to_nan([value])[0], atol=1e-9, err_msg=area)
    np.testing.assert_allclose(np.nanmean(results.recall(counts)), metrics.ar100, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_every_image_once_equals_pycocotools(make_case, seed):
    dataset, detections = make_case(seed)
    results = image_results(dataset, detections)
    assert_same(results, evaluate(dataset, detections), None)
    assert_same(results, evaluate(dataset, detections), np.ones((1, len(dataset.images))))


@pytest.mark.parametrize("seed", range(6))
def test_a_resample_equals_pycocotools_on_copied_images(make_case, seed):
    dataset, detections = make_case(seed, images=20)
    counts = np.random.default_rng(seed).multinomial(20, np.full(20, 1 / 20))
    assert counts.max() > 1 and counts.min() == 0
    copies = duplicated(dataset, detections, counts)
    assert_same(image_results(dataset, detections), evaluate(*copies), counts[None])


def test_a_resample_without_a_class_leaves_it_undefined(make_dataset, make_detection):
    dataset = make_dataset([1, 2], [(1, "a"), (2, "b")], [(1, 1, (0, 0, 9, 9), 0), (2, 2, (0, 0, 9, 9), 0)])
    results = image_results(dataset, [make_detection(1, 1, (0, 0, 9, 9), 0.5)])
    ap = results.average_precision(np.array([[2, 0], [0, 2], [1, 1]])).mean(axis=2)
    np.testing.assert_allclose(ap, [[1, np.nan], [np.nan, 0], [1, 0]])
    np.testing.assert_allclose(results.mean_average_precision(np.array([[2, 0], [0, 2], [1, 1]])), [1, 0, 0.5])


def test_many_resamples_at_once_equal_one_at_a_time(make_case, monkeypatch):
    dataset, detections = make_case(3)
    results = image_results(dataset, detections)
    counts = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), size=40)
    singles = np.concatenate([results.average_precision(row[None]) for row in counts])
    monkeypatch.setattr("engine.evaluation.matching._CHUNK", 1000)  # several chunks
    np.testing.assert_array_equal(results.average_precision(counts), singles)


def test_only_100_detections_an_image_and_class_count(make_dataset, make_detection):
    dataset = make_dataset([1], [(1, "a")], [(1, 1, (0, 0, 50, 50), 0)])
    alarms = [make_detection(1, 1, (100, 100, 20, 20), 0.9 - k / 1000) for k in range(100)]
    found = make_detection(1, 1, (0, 0, 50, 50), 0.1)
    results = image_results(dataset, [*alarms, found])
    assert results.mean_average_precision()[0] == evaluate(dataset, [*alarms, found]).map == 0.0
    assert image_results(dataset, [*alarms[1:], found]).mean_average_precision()[0] > 0.0


def test_counts_of_the_wrong_shape_are_refused(make_case):
    results = image_results(*make_case(0))
    with pytest.raises(ValueError, match="30 images"):
        results.average_precision(np.ones((5, 29)))
    with pytest.raises(ValueError, match="area"):
        results.average_precision(area="tiny")
