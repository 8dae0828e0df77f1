"""Detections on their way into an evaluator: checked first, then scored without a word on stdout.

pycocotools is the reference. hotcoco gives the very same numbers of boxes, about a hundred times faster, and serves
where it is installed; tests/engine/evaluation/test_evaluators.py compares every precision and recall of the two.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
import numbers
from collections.abc import Mapping, Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from engine.data.dataset import Dataset
from engine.errors import DatasetError


def class_names(dataset: Dataset) -> tuple[str, ...]:
    """Names by rising category id, as pycocotools orders them; a name borne twice gets its id behind it."""
    categories = sorted(dataset.categories, key=lambda category: category.id)
    names = [category.name for category in categories]
    return tuple(f"{c.name} ({c.id})" if names.count(c.name) > 1 else c.name for c in categories)


def check_detections(dataset: Dataset, detections: Sequence[Mapping]) -> None:
    """Raise DatasetError with the first ten detections that cannot be scored."""
    images = {image.id for image in dataset.images}
    categories = {category.id for category in dataset.categories}
    bad = []
    for index, detection in enumerate(detections):
        fault = _fault(detection, images, categories)
        if fault:
            bad.append(f"detection {index}: {fault}")
    if bad:
        more = f"\n  and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise DatasetError(
            f"{len(bad)} of {len(detections)} detections cannot be scored on split '{dataset.split}' of "
            f"{dataset.folder}, so no score is given:\n  "
            + "\n  ".join(bad[:10])
            + more
            + "\nA detection is {image_id, category_id, bbox: [x, y, width, height] in pixels, score: 0 to 1}."
        )


def _fault(detection: Mapping, images: set[int], categories: set[int]) -> str | None:
    if not isinstance(detection, Mapping):
        return f"is a {type(detection).__name__}, not a mapping"
    missing = [key for key in ("image_id", "category_id", "bbox", "score") if key not in detection]
    if missing:
        return f"has no {', '.join(missing)}"
    for key, known in (("image_id", images), ("category_id", categories)):
        value = detection[key]
        if type(value) is not int and (isinstance(value, bool) or not isinstance(value, numbers.Integral)):
            return f"{key} {value!r} is no integer"
        if int(value) not in known:
            return f"{key} {value} is not in the dataset"
    score, box = detection["score"], detection["bbox"]
    if not _is_finite(score) or not 0 <= score <= 1:
        return f"score {score!r} is not between 0 and 1"
    if not isinstance(box, list | tuple | np.ndarray) or len(box) != 4 or not all(_is_finite(v) for v in box):
        return f"bbox {box!r} is not four finite numbers"
    if box[2] <= 0 or box[3] <= 0:
        return f"bbox {box!r} has no width or no height"
    return None


def _is_finite(value) -> bool:
    if type(value) is float:  # first, since asking an abstract type is slow and there are millions
        return math.isfinite(value)
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def run_coco(dataset: Dataset, detections: Sequence[Mapping], ious: Sequence[float] | None = None) -> COCOeval:
    """COCOeval with `evaluate` done, silently. Detection ids are the index in `detections` plus 1.

    Objects are numbered anew from 1: pycocotools takes a match with id 0 for none, and counts double ids wrongly.
    """
    check_detections(dataset, detections)
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(_indexed(_truth(dataset)), _indexed(_found(dataset, detections)), "bbox")
        if ious is not None:
            run.params.iouThrs = np.asarray(ious, dtype=float)
        run.evaluate()
    return run


def has_hotcoco() -> bool:
    """Whether the fast evaluator is installed."""
    return importlib.util.find_spec("hotcoco") is not None


def run_hotcoco(dataset: Dataset, detections: Sequence[Mapping]) -> tuple[np.ndarray, np.ndarray]:
    """Precision (T, 101, K, A, 3) and recall (T, K, A, 3) of boxes as pycocotools accumulates them; -1: undefined."""
    import hotcoco

    check_detections(dataset, detections)
    rows = [(d["image_id"], *d["bbox"], d["score"], d["category_id"]) for d in detections]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = hotcoco.COCO(_truth(dataset))
        found = truth.load_res(np.array(rows, dtype=float).reshape(-1, 7))  # ids from 1 in the order given
        run = hotcoco.COCOeval(truth, found, "bbox")
        run.evaluate()
        run.accumulate()
    return np.asarray(run.eval["precision"]), np.asarray(run.eval["recall"])


def _truth(dataset: Dataset) -> dict:
    """The dataset as a COCO document, its objects numbered from 1."""
    objects = [
        {
            "id": index,
            "image_id": a.image_id,
            "category_id": a.category_id,
            "bbox": list(a.bbox_xywh),
            "area": a.area,
            "iscrowd": a.iscrowd,
        }
        for index, a in enumerate(dataset.annotations, start=1)
    ]
    return _document(dataset, objects)


def _found(dataset: Dataset, detections: Sequence[Mapping]) -> dict:
    """The detections as a COCO document, numbered from 1."""
    found = []
    for index, detection in enumerate(detections, start=1):
        box = [float(value) for value in detection["bbox"]]
        found.append(
            {
                "id": index,
                "image_id": int(detection["image_id"]),
                "category_id": int(detection["category_id"]),
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
                "score": float(detection["score"]),
            }
        )
    return _document(dataset, found)


def _document(dataset: Dataset, annotations: list[dict]) -> dict:
    return {
        "images": [{"id": image.id, "width": image.width, "height": image.height} for image in dataset.images],
        "categories": [{"id": category.id, "name": category.name} for category in dataset.categories],
        "annotations": annotations,
    }


def _indexed(document: dict) -> COCO:
    coco = COCO()
    coco.dataset = document
    coco.createIndex()
    return coco
