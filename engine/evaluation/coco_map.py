"""COCO's mean average precision: pycocotools is the reference, hotcoco serves for boxes where it is installed.

Undefined is None, never -1: a class (or an object size) that the ground truth does not hold has no score and takes no
part in a mean; without any ground truth every score is None. A class that is there and was not detected scores 0.0.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from engine.data.dataset import Dataset
from engine.data.segmentation import segmentation_rle
from engine.errors import DatasetError
from engine.evaluation.matching import AREAS, IOUS, RECALLS, ClassMatches, image_results
from engine.evaluation.reference import class_names, has_hotcoco, run_coco, run_hotcoco


@dataclass(frozen=True)
class Metrics:
    """Scores from 0 to 1, or None where undefined.

    map: mean over classes and IoU 0.50:0.95; map50, map75: at one IoU; map_small, _medium, _large: objects below
    32^2, up to 96^2, above, in pixels; ar100: recall with 100 detections an image and class; per_class, per_class50:
    by class name; counts: images, objects, ignored regions, detections, objects_per_class.
    """

    map: float | None
    map50: float | None
    map75: float | None
    map_small: float | None
    map_medium: float | None
    map_large: float | None
    ar100: float | None
    per_class: dict[str, float | None]
    per_class50: dict[str, float | None]
    counts: dict


@dataclass(frozen=True)
class PrecisionRecall:
    """Curve of one class: recall (101,) from 0 to 1, precision (101,) the best at that recall or beyond, score (101,)
    the threshold that reaches the recall (0 where none does), objects: how many there were to find."""

    recall: np.ndarray
    precision: np.ndarray
    score: np.ndarray
    objects: int


@dataclass(frozen=True)
class Matched:
    """Detections of one class that count at one IoU, highest score first.

    scores (N,), hit (N,) bool: true or false positive, detection (N,): index in the list given; objects: how many
    there were to find. Detections in crowd regions are left out.
    """

    scores: np.ndarray
    hit: np.ndarray
    detection: np.ndarray
    objects: int


def evaluate(
    dataset: Dataset,
    detections: Sequence[Mapping],
    iou_type: Literal["bbox", "segm"] = "bbox",
    evaluator: Literal["auto", "pycocotools", "hotcoco"] = "auto",
) -> Metrics:
    """Score COCO result dicts {image_id, category_id, bbox XYWH, score} in pixels of the original images, by the
    overlap of boxes or, for "segm", of masks: then each dict has a COCO `segmentation` too.

    Raises DatasetError, with the first ten, for detections on unknown images or classes, or with unusable numbers; for
    "segm" also for the first object or detection without a readable mask.

    `evaluator` changes the time, not the numbers: "auto" takes hotcoco for boxes where it is installed, and masks are
    always pycocotools' business.
    """
    fast = evaluator == "hotcoco" or (evaluator == "auto" and has_hotcoco())
    if fast and iou_type == "bbox":
        precision, recall = run_hotcoco(dataset, detections)
    else:
        precision, recall = _run_pycocotools(dataset, detections, iou_type)
    at = {iou: precision[np.isclose(IOUS, iou)] for iou in (0.5, 0.75)}
    names = class_names(dataset)
    sizes = {area: _mean(precision[:, :, :, index, 2]) for index, area in enumerate(AREAS)}
    return Metrics(
        map=sizes["all"],
        map50=_mean(at[0.5][:, :, :, 0, 2]),
        map75=_mean(at[0.75][:, :, :, 0, 2]),
        map_small=sizes["small"],
        map_medium=sizes["medium"],
        map_large=sizes["large"],
        ar100=_mean(recall[:, :, 0, 2]),
        per_class={name: _mean(precision[:, :, k, 0, 2]) for k, name in enumerate(names)},
        per_class50={name: _mean(at[0.5][:, :, k, 0, 2]) for k, name in enumerate(names)},
        counts=_counts(dataset, detections, names),
    )


def _run_pycocotools(dataset: Dataset, detections: Sequence[Mapping], iou_type: str) -> tuple[np.ndarray, np.ndarray]:
    """Precision (T, 101, K, A, 3) and recall (T, K, A, 3); -1: undefined."""
    run = run_coco(dataset, detections)
    if iou_type == "segm":
        _match_masks(run, dataset, detections)
    with contextlib.redirect_stdout(io.StringIO()):
        run.accumulate()
    return run.eval["precision"], run.eval["recall"]


def _match_masks(run: COCOeval, dataset: Dataset, detections: Sequence[Mapping]) -> None:
    """Match anew, by masks. `run` holds objects and detections under their positions, from 1."""
    pictures = {image.id: (image.width, image.height) for image in dataset.images}

    def give_masks(held: COCO, position: int, named: str, image_id: int, segmentation: object) -> None:
        try:
            rle = segmentation_rle(segmentation, pictures[image_id], pictures[image_id])
            if rle is None:
                raise ValueError("it has none")
        except ValueError as problem:
            raise DatasetError(
                f"No mask AP on split '{dataset.split}' of {dataset.folder}: no mask can be read from the "
                f"segmentation of {named}: {problem}. Correct it, or score boxes only."
            ) from None
        held.anns[position]["segmentation"] = rle

    for position, a in enumerate(dataset.annotations, start=1):
        give_masks(run.cocoGt, position, f"annotation {a.id}", a.image_id, a.extra.get("segmentation"))
    for position, d in enumerate(detections, start=1):
        give_masks(run.cocoDt, position, f"detection {position - 1}", d["image_id"], d.get("segmentation"))
        run.cocoDt.anns[position]["area"] = float(coco_mask.area(run.cocoDt.anns[position]["segmentation"]))
    run.params.iouType = "segm"
    with contextlib.redirect_stdout(io.StringIO()):
        run.evaluate()


def precision_recall(
    dataset: Dataset, detections: Sequence[Mapping], iou: float = 0.5
) -> dict[str, PrecisionRecall | None]:
    """Per class the curve at one IoU; None for a class without ground truth."""
    results = image_results(dataset, detections, [iou])
    return {name: curve_of(m) for name, m in zip(results.classes, results.matches["all"], strict=True)}


def match(dataset: Dataset, detections: Sequence[Mapping], iou: float = 0.5) -> dict[str, Matched]:
    """Per class which detections are true positives at one IoU: the material for score thresholds."""
    results = image_results(dataset, detections, [iou])
    return {name: _matched(m) for name, m in zip(results.classes, results.matches["all"], strict=True)}


def _matched(matches: ClassMatches) -> Matched:
    counted = ~matches.ignored[0]
    return Matched(
        matches.scores[counted], matches.hit[0][counted], matches.detection[counted], int(matches.objects.sum())
    )


def curve_of(matches: ClassMatches) -> PrecisionRecall | None:
    """The curve of one class at the first IoU of its matches; None without ground truth."""
    matched = _matched(matches)
    if matched.objects == 0:
        return None
    found = np.cumsum(matched.hit)
    precision = found / np.arange(1, len(found) + 1)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    place = np.searchsorted(found / matched.objects, RECALLS, side="left")
    return PrecisionRecall(RECALLS, envelope[place], np.append(matched.scores, 0.0)[place], matched.objects)


def _counts(dataset: Dataset, detections: Sequence[Mapping], names: tuple[str, ...]) -> dict:
    categories = sorted(category.id for category in dataset.categories)
    objects = [annotation.category_id for annotation in dataset.annotations if not annotation.iscrowd]
    return {
        "images": len(dataset.images),
        "objects": len(objects),
        "ignored": len(dataset.annotations) - len(objects),
        "detections": len(detections),
        "objects_per_class": {name: objects.count(c) for name, c in zip(names, categories, strict=True)},
    }


def _mean(values: np.ndarray) -> float | None:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None
