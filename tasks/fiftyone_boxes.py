"""The boxes of generated images in FiftyOne, twice: to edit, and as generated (`predictions_raw`).

To edit there are the labels (`predictions`), and apart from them the ignore regions (`ignored`), of which there may be
far more: with both in one field nobody sees the image for boxes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import ModuleType

from engine.curation.box_diff import ShownBox, ShownBoxes
from engine.data.dataset import Annotation, Dataset, ImageRecord

PREDICTIONS, IGNORED, PREDICTIONS_RAW = "predictions", "ignored", "predictions_raw"
EDITED = (PREDICTIONS, IGNORED)  # what a person may change; one list, in two fields
GENERATED_SLICE = "generated"


def read_boxes(dataset) -> list[ShownBoxes]:
    """The boxes of every generated image, as they were loaded and as they are now; likewise from the database."""
    view = dataset.select_group_slices(GENERATED_SLICE)
    fields = [field for field in (PREDICTIONS_RAW, *EDITED) if dataset.has_field(field)]  # IGNORED came later
    columns = view.values(["image_id", *(f"{field}.detections" for field in fields)])
    return [
        ShownBoxes(image_id, *_raw_and_now(dict(zip(fields, lists, strict=True))))
        for image_id, *lists in zip(*columns, strict=True)
    ]


def _raw_and_now(lists: Mapping[str, Sequence]) -> tuple[tuple[ShownBox, ...], tuple[ShownBox, ...]]:
    shown = {field: tuple(_shown_box(box, field == IGNORED) for box in boxes or ()) for field, boxes in lists.items()}
    return shown[PREDICTIONS_RAW], tuple(box for field in EDITED for box in shown.get(field, ()))


def _shown_box(detection, crowd: bool) -> ShownBox:
    """crowd: of a box drawn in the App, which says nothing itself."""
    if detection.has_field("iscrowd") and detection.iscrowd is not None:
        crowd = bool(detection.iscrowd)
    known = detection.annotation_id if detection.has_field("annotation_id") else None
    return ShownBox(detection.id, detection.label, tuple(detection.bounding_box or ()), crowd, known)


def make_editable(dataset, classes: Sequence[str]) -> None:
    """Let the App's Annotate tab edit the boxes, of known classes only, and show their generated twins as read-only.

    By label schemas: with a label field that is itself `read_only` the tab of FiftyOne 1.22.1 loads for ever.
    """
    for field in EDITED:
        schema = dataset.generate_label_schemas(field, scan_samples=False)
        offered = [attribute for attribute in schema["attributes"] if attribute["name"] == "iscrowd"]
        limits = {"component": "dropdown", "classes": list(classes), "attributes": offered}
        dataset.update_label_schema(field, schema | limits)
    fixed = {"type": schema["type"], "component": "dropdown", "classes": list(classes), "read_only": True}
    dataset.update_label_schema(PREDICTIONS_RAW, fixed)
    dataset.active_label_schemas = list(EDITED)


def predictions(
    fiftyone: ModuleType, generated: Dataset, edited: Dataset, image: ImageRecord, names: Mapping[int, str]
) -> dict:
    """The boxes as generated and as a person left them; one that was changed has the same id in both."""
    raw = detections(fiftyone, generated, image, names)
    now = detections(fiftyone, edited, image, names)
    keys = {detection.annotation_id: detection.id for detection in raw.detections}
    for detection in now.detections:
        detection.id = keys.get(detection.annotation_id, detection.id)
    labels = fiftyone.Detections(detections=[d for d in now.detections if not d.iscrowd])
    ignored = fiftyone.Detections(detections=[d for d in now.detections if d.iscrowd])
    return {PREDICTIONS: labels, IGNORED: ignored, PREDICTIONS_RAW: raw}


def detections(fiftyone: ModuleType, dataset: Dataset, image: ImageRecord, names: Mapping[int, str]):
    """The boxes of an image, as FiftyOne has them."""
    return fiftyone.Detections(
        detections=[_detection(fiftyone, a, image, names) for a in dataset.annotations_of(image.id)]
    )


def _detection(fiftyone: ModuleType, annotation: Annotation, image: ImageRecord, names: Mapping[int, str]):
    """FiftyOne's boxes are XYWH relative to the image's sides."""
    x, y, width, height = annotation.bbox_xywh
    score = annotation.extra.get("score")
    return fiftyone.Detection(
        label=names[annotation.category_id],
        bounding_box=[x / image.width, y / image.height, width / image.width, height / image.height],
        confidence=float(score) if isinstance(score, int | float) and math.isfinite(score) else None,
        iscrowd=bool(annotation.iscrowd),
        annotation_id=annotation.id,
    )
