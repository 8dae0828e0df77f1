"""decisions.jsonl: the boxes that a person corrected on a generated dataset, one line for each corrected image.

    {"image_id": 3, "added": [{"id": 90, "category": "car", "bbox": [1, 2, 30, 40], "iscrowd": 0}], "removed": [7],
     "changed": [{"id": 8, "category": "bus", "bbox": [5, 5, 9.5, 9], "iscrowd": 0}], "reviewer": null,
     "annotations": "<sha256 of annotations.json>"}

annotations.json stays as it was generated: what is trained on is made of the two (`engine.curation.training_labels`).
Boxes are XYWH in pixels. `removed`, and the ids of `changed`, are of annotations.json; those of `added` lie above them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from engine.curation.decisions import annotations_digest
from engine.data.bounded_json import read_json_lines
from engine.data.coco_checks import bbox_problem, id_problem
from engine.data.dataset import Annotation, Dataset, ImageRecord
from engine.data.files import sync_folder, write_atomically
from engine.errors import DatasetError
from engine.generation.labels import MIN_SIDE

FILE = "decisions.jsonl"
_KEYS = {"image_id", "added", "removed", "changed", "reviewer", "annotations"}
_CURE = "Collect from the App again, or delete {file} to train on the boxes as they were generated."


@dataclass(frozen=True)
class EditedBox:
    """A box as a person left it.

    Attributes:
        id: of the annotation.
        category: name of its class.
        bbox_xywh: pixels of the generated image.
        iscrowd: 1 for a region that is neither object nor background.
    """

    id: int
    category: str
    bbox_xywh: tuple[float, float, float, float]
    iscrowd: int = 0


@dataclass(frozen=True)
class ImageEdits:
    """What a person did to the boxes of one image. removed: annotation ids. reviewer: who, where that is known."""

    image_id: int
    added: tuple[EditedBox, ...] = ()
    removed: tuple[int, ...] = ()
    changed: tuple[EditedBox, ...] = ()
    reviewer: str | None = None


def box_problem(box: EditedBox, image: ImageRecord, classes: Mapping[str, int]) -> str | None:
    """Why an edited box cannot be a label, or None. classes: name -> category id."""
    if box.category not in classes:
        named = "has no class" if not box.category else f"is of the class {box.category!r}, which there is not"
        return f"{named}; the classes are {', '.join(classes)}"
    problem = bbox_problem(box.bbox_xywh, image.width, image.height)
    if problem is None and min(box.bbox_xywh[2:]) < MIN_SIDE:
        problem = f"bbox {list(box.bbox_xywh)} has a side below {MIN_SIDE:g} pixel"
    return problem


def read_edits(folder: Path) -> dict[int, ImageEdits]:
    """Image id -> edits, in the file's order; none where there is no file. Whether they fit the images is checked when
    they are applied.

    Raises:
        DatasetError: the file is broken, or was made for another annotations.json.
    """
    path = Path(folder) / FILE
    if not path.exists():
        return {}
    cure = _CURE.format(file=path)
    try:
        entries = read_json_lines(path)
    except DatasetError as error:
        raise DatasetError(f"{error} {cure}") from None
    digest, edits = annotations_digest(Path(folder)), {}
    for number, entry in enumerate(entries, start=1):
        fault = _fault(entry) or ("its image comes a second time" if entry["image_id"] in edits else None)
        if fault:
            raise DatasetError(f"{path}, entry {number}: {fault}. {cure}")
        if entry["annotations"] != digest:
            raise DatasetError(
                f"{path}, entry {number}: it was made for another annotations.json (its {entry['annotations'][:12]}, "
                f"here {digest[:12]}), whose boxes are others. {cure}"
            )
        added, changed = (tuple(_box(box) for box in entry[key]) for key in ("added", "changed"))
        image_id = entry["image_id"]
        edits[image_id] = ImageEdits(image_id, added, tuple(entry["removed"]), changed, entry["reviewer"])
    return edits


def write_edits(folder: Path, edits: Mapping[int, ImageEdits]) -> Path | None:
    """Write decisions.jsonl in one step, by image id; take it away where nothing is edited. Equal edits, equal bytes.

    Returns:
        the file; None where there is none now.
    """
    path = Path(folder) / FILE
    if not edits:
        path.unlink(missing_ok=True)
        sync_folder(path.parent)
        return None
    digest = annotations_digest(Path(folder))
    lines = [json.dumps(_entry(edits[i], digest), sort_keys=True, allow_nan=False) for i in sorted(edits)]
    write_atomically(path, ("\n".join(lines) + "\n").encode())
    return path


def apply_edits(dataset: Dataset, edits: Mapping[int, ImageEdits]) -> Dataset:
    """The dataset with the edits of its images; those of other images say nothing about it.

    A box that a person drew or changed has score 1 and `edited` true. A changed box loses a mask that was drawn for
    the old one.

    Raises:
        DatasetError: an edit does not fit its image.
    """
    images = {image.id: image for image in dataset.images}
    touched = {image_id: edit for image_id, edit in edits.items() if image_id in images}
    if not touched:
        return dataset
    classes = {category.name: category.id for category in dataset.categories}
    taken = {annotation.id for annotation in dataset.annotations}
    by_image = {}
    for image_id, edit in touched.items():
        own = dataset.annotations_of(image_id)
        problem = _misfit(edit, own, images[image_id], classes, taken)
        if problem:
            path = dataset.folder / FILE
            raise DatasetError(f"{path}: image {image_id}: {problem}. {_CURE.format(file=path)}")
        taken |= {box.id for box in edit.added}
        by_image[image_id] = tuple(_edited(own, edit, classes))
    annotations: list[Annotation] = []
    for image in dataset.images:
        annotations += by_image.get(image.id, dataset.annotations_of(image.id))
    return replace(dataset, annotations=tuple(annotations))


def _edited(own: tuple[Annotation, ...], edit: ImageEdits, classes: Mapping[str, int]) -> Iterator[Annotation]:
    changed = {box.id: box for box in edit.changed}
    for annotation in own:
        if annotation.id in edit.removed:
            continue
        box = changed.get(annotation.id)
        yield annotation if box is None else _labelled(box, annotation, classes)
    for box in edit.added:
        blank = Annotation(box.id, edit.image_id, 0, box.bbox_xywh, 0.0, box.iscrowd)
        yield _labelled(box, blank, classes)


def _labelled(box: EditedBox, before: Annotation, classes: Mapping[str, int]) -> Annotation:
    moved = box.bbox_xywh != before.bbox_xywh
    extra = {key: value for key, value in before.extra.items() if not (moved and key == "segmentation")}
    area = box.bbox_xywh[2] * box.bbox_xywh[3] if moved or not before.area else before.area
    return replace(
        before,
        category_id=classes[box.category],
        bbox_xywh=box.bbox_xywh,
        area=area,
        iscrowd=box.iscrowd,
        extra=extra | {"score": 1.0, "edited": True},
    )


def _misfit(
    edit: ImageEdits, own: tuple[Annotation, ...], image: ImageRecord, classes: Mapping[str, int], taken: set[int]
) -> str | None:
    """Why an image's edits cannot be applied, or None."""
    known = {annotation.id for annotation in own}
    strange = [i for i in (*edit.removed, *(box.id for box in edit.changed)) if i not in known]
    if strange:
        return f"it has no annotation {strange[0]} that could have been edited"
    for box in edit.added:
        if box.id in taken:
            return f"the id {box.id} of an added box is in use"
    for box in (*edit.added, *edit.changed):
        problem = box_problem(box, image, classes)
        if problem:
            return f"box {box.id} {problem}"
    return None


def _entry(edit: ImageEdits, digest: str) -> dict:
    return {
        "image_id": edit.image_id,
        "added": [_box_entry(box) for box in edit.added],
        "removed": sorted(edit.removed),
        "changed": [_box_entry(box) for box in sorted(edit.changed, key=lambda box: box.id)],
        "reviewer": edit.reviewer,
        "annotations": digest,
    }


def _box_entry(box: EditedBox) -> dict:
    return {"id": box.id, "category": box.category, "bbox": [float(v) for v in box.bbox_xywh], "iscrowd": box.iscrowd}


def _box(entry: Mapping) -> EditedBox:
    return EditedBox(entry["id"], entry["category"], tuple(float(v) for v in entry["bbox"]), entry["iscrowd"])


def _fault(entry: object) -> str | None:
    """What is wrong with the shape of a line; None when nothing is."""
    if not isinstance(entry, dict) or set(entry) != _KEYS:
        return f"must be an object of {', '.join(sorted(_KEYS))}"
    if id_problem(entry["image_id"]):
        return f"its image_id {id_problem(entry['image_id'])}"
    if not isinstance(entry["annotations"], str):
        return "'annotations' must be the sha256 of annotations.json"
    if not isinstance(entry["reviewer"], str | None):
        return "'reviewer' must be a name or null"
    if not isinstance(entry["removed"], list) or any(id_problem(i) for i in entry["removed"]):
        return "'removed' must be a list of annotation ids"
    for key in ("added", "changed"):
        if not isinstance(entry[key], list) or not all(_is_box(box) for box in entry[key]):
            return f"'{key}' must be a list of boxes with id, category, bbox [x, y, width, height] and iscrowd"
    ids = [box["id"] for box in (*entry["added"], *entry["changed"])] + entry["removed"]
    return "an annotation is named twice" if len(set(ids)) != len(ids) else None


def _is_box(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and set(entry) == {"id", "category", "bbox", "iscrowd"}
        and not id_problem(entry["id"])
        and isinstance(entry["category"], str)
        and isinstance(entry["bbox"], list)
        and len(entry["bbox"]) == 4
        and all(type(value) in (int, float) for value in entry["bbox"])
        and type(entry["iscrowd"]) is int
        and entry["iscrowd"] in (0, 1)
    )
