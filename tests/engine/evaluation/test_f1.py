from __future__ import annotations

from pathlib import Path

import pytest

from engine.data.dataset import Annotation, Category, Dataset, ImageRecord
from engine.evaluation.f1 import box_scores, scores_at_best_f1

CATEGORIES = (Category(1, "cat", ""), Category(2, "owl", ""))
IMAGES = (ImageRecord(1, "1.png", 100, 100, {}),)
DATA = Dataset(
    Path(),
    "val",
    IMAGES,
    CATEGORIES,
    (Annotation(1, 1, 1, (0, 0, 20, 20), 400, 0, {}), Annotation(2, 1, 2, (50, 50, 20, 20), 400, 0, {})),
)


def result(category, bbox, score):
    return {"image_id": 1, "category_id": category, "bbox": bbox, "score": score}


def test_f1_counts_boxes_of_the_right_class_at_half_overlap():
    found = [result(1, [0, 0, 20, 20], 0.9), result(1, [50, 50, 20, 20], 0.8), result(2, [55, 50, 20, 20], 0.7)]
    assert box_scores(DATA, found) == {"recall": 1.0, "precision": pytest.approx(2 / 3), "f1": pytest.approx(4 / 5)}
    assert box_scores(DATA, []) == {"recall": 0.0, "precision": None, "f1": 0.0}


def test_the_best_score_is_the_lowest_that_counts_and_equal_scores_pass_together():
    wrong = [result(1, [70, 0, 20, 20], 0.5)]
    found = [result(1, [0, 0, 20, 20], 0.9), result(2, [50, 50, 20, 20], 0.5)]
    best = scores_at_best_f1(DATA, [*found, *wrong])
    assert (best.threshold, best.f1) == (0.5, pytest.approx(4 / 5))
    assert scores_at_best_f1(DATA, []) == type(best)(0.0, 0.0)
