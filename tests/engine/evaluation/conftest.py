"""Detection problems with known answers, without pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.data.dataset import Annotation, Category, Dataset, ImageRecord


def build(images, categories, boxes) -> Dataset:
    """boxes: (image id, category id, (x, y, w, h), iscrowd)."""
    return Dataset(
        Path("nowhere"), "test",
        tuple(ImageRecord(i, f"{i}.png", 400, 400, {}) for i in images),
        tuple(Category(c, name) for c, name in categories),
        tuple(Annotation(n, i, c, tuple(map(float, b)), float(b[2] * b[3]), crowd, {})
              for n, (i, c, b, crowd) in enumerate(boxes, start=1)),
    )  # fmt: skip


def random_case(seed: int, images: int = 30, classes: int = 4, crowds: bool = True):
    """Objects of all sizes, some classes missing in some images, crowds, misses, duplicates and false alarms.

    Ids are sparse and out of order. All scores differ: among equal scores pycocotools goes by image order, which a
    copy of an image changes.
    """
    rng = np.random.default_rng(seed)
    image_ids = [int(i) for i in rng.permutation(np.arange(1, images + 1) * 3)]
    categories = [(5 * c + 2, f"class {c}") for c in range(classes)]
    boxes, detections = [], []
    scores = iter(rng.permutation(200 * images) / (200 * images))
    for image in image_ids:
        for _ in range(rng.integers(0, 5)):
            category = categories[rng.integers(classes)][0]
            side = float(np.exp(rng.uniform(np.log(8), np.log(180))))
            x, y = rng.uniform(0, 400 - side, 2)
            boxes.append((image, category, (x, y, side, side * 0.8), int(crowds and rng.random() < 0.15)))
            for _ in range(rng.integers(0, 4)):
                shift = rng.normal(0, 0.1 * side, 4)
                box = [x + shift[0], y + shift[1], max(2, side + shift[2]), max(2, side * 0.8 + shift[3])]
                guess = category if rng.random() < 0.8 else categories[rng.integers(classes)][0]
                detections.append(detection(image, guess, box, next(scores)))
        for _ in range(rng.integers(0, 4)):
            box = [*rng.uniform(0, 200, 2), *rng.uniform(5, 150, 2)]
            detections.append(detection(image, categories[rng.integers(classes)][0], box, next(scores)))
    return build(image_ids, categories, boxes), detections


def detection(image, category, box, score) -> dict:
    return {"image_id": image, "category_id": category, "bbox": [float(v) for v in box], "score": float(score)}


@pytest.fixture
def make_dataset():
    return build


@pytest.fixture
def make_case():
    return random_case


@pytest.fixture
def make_detection():
    return detection
