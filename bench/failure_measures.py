"""What bench/failure_cases.py counts beside boxes found and invented: how often each case's failure occurs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.data.dataset import Dataset
from engine.evaluation.f1 import IOU


def kept_from(threshold: float, results: Sequence[dict]) -> list[dict]:
    """The results of at least this score."""
    return [result for result in results if result["score"] >= threshold]


@dataclass(frozen=True)
class SubjectBoxes:
    """Of one image the true (N, 4) and the found (M, 4) boxes XYXY of the class that its case is about."""

    true_xyxy: np.ndarray
    found_xyxy: np.ndarray


def subject_boxes(data: Dataset, results: Sequence[dict]) -> list[SubjectBoxes]:
    """One an image, in the dataset's order."""
    ids = {category.name: category.id for category in data.categories}
    found: dict[tuple[int, int], list[Sequence[float]]] = {}
    for result in results:
        found.setdefault((result["image_id"], result["category_id"]), []).append(result["bbox"])
    pairs = []
    for image in data.images:
        subject = ids[image.extra["subject"]]
        true = [a.bbox_xywh for a in data.annotations_of(image.id) if a.category_id == subject]
        pairs.append(SubjectBoxes(_xyxy(true), _xyxy(found.get((image.id, subject), []))))
    return pairs


def touching(images: Sequence[SubjectBoxes]) -> dict[str, float]:
    """Pairs found as two boxes; pairs found as one box that fits the two together better than either."""
    two = merged = 0
    for image in images:
        first, second = image.true_xyxy
        union = np.array([*np.minimum(first, second)[:2], *np.maximum(first, second)[2:]])
        ious = _iou(image.found_xyxy, np.stack([first, second, union]))
        fits = ious[:, :2] >= IOU
        if fits.any(axis=0).all() and fits.any(axis=1).sum() >= 2:
            two += 1
        elif ((ious[:, 2] >= IOU) & (ious[:, 2] > ious[:, :2].max(axis=1, initial=0))).any():
            merged += 1
    return {"found as two": two / len(images), "merged into one": merged / len(images)}


def parts(images: Sequence[SubjectBoxes]) -> dict[str, float]:
    """Objects found as one box and no other; objects with two or more boxes of their class that lie mostly on them."""
    one = split = 0
    for image in images:
        inside = _overlap(image.found_xyxy, image.true_xyxy)[:, 0] / np.maximum(_area(image.found_xyxy), 1e-9) >= 0.5
        fits = _iou(image.found_xyxy, image.true_xyxy)[:, 0] >= IOU
        one += int(fits.sum() == 1 and (inside | fits).sum() == 1)
        split += int(inside.sum() >= 2)
    return {"found as one": one / len(images), "split into several": split / len(images)}


def not_drawn(images: Sequence[SubjectBoxes]) -> dict[str, float]:
    """Images with a box of the class that is not there."""
    return {"images with a false box": sum(len(image.found_xyxy) > 0 for image in images) / len(images)}


def not_prompted(images: Sequence[SubjectBoxes]) -> dict[str, float]:
    """Objects found of the class that the prompt leaves out."""
    found = sum(int((_iou(i.found_xyxy, i.true_xyxy) >= IOU).any(axis=0).sum()) for i in images)
    return {"unprompted objects found": found / sum(len(image.true_xyxy) for image in images)}


MEASURES = {"touching": touching, "parts": parts, "not_drawn": not_drawn, "not_prompted": not_prompted}


def _xyxy(boxes_xywh: Sequence[Sequence[float]]) -> np.ndarray:
    boxes = np.array(boxes_xywh, dtype=float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _area(boxes_xyxy: np.ndarray) -> np.ndarray:
    return (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1)


def _overlap(first_xyxy: np.ndarray, second_xyxy: np.ndarray) -> np.ndarray:
    """(N, M) pixels in common."""
    low = np.maximum(first_xyxy[:, None, :2], second_xyxy[None, :, :2])
    high = np.minimum(first_xyxy[:, None, 2:], second_xyxy[None, :, 2:])
    return (high - low).clip(min=0).prod(axis=2)


def _iou(first_xyxy: np.ndarray, second_xyxy: np.ndarray) -> np.ndarray:
    common = _overlap(first_xyxy, second_xyxy)
    return common / (_area(first_xyxy)[:, None] + _area(second_xyxy)[None] - common)
