"""From the usable pictures of a source to files and records of the new dataset."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from tqdm import tqdm

from engine.data.coco_checks import is_number
from engine.data.images import ImageInfo
from engine.data.import_report import Notes
from engine.data.import_rules import assign_ids, settle_box
from engine.data.import_source import SourceBox, SourceImage
from engine.data.records import Annotation, ImageRecord


@dataclass(frozen=True)
class Picture:
    """A usable picture of the source, and the frame of its boxes: "upright" or "stored"."""

    source: SourceImage
    info: ImageInfo
    frame: str


def place_pictures(folder: Path, pictures: Sequence[Picture], notes: Notes) -> list[str]:
    """Copy the pictures; names that are taken get their split as a folder, then a number."""
    names: list[str] = []
    taken: set[str] = set()
    for picture in tqdm(pictures, "copy", disable=None):
        wanted = picture.source.name
        name = _free_name(wanted, picture.source.split, taken)
        if name != wanted:
            notes.add("images_renamed", picture.source.where, f"{wanted} became {name}")
        taken.add(name)
        names.append(name)
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture.source.file, target)
    return names


def _free_name(wanted: str, split: str, taken: set[str]) -> str:
    if wanted not in taken:
        return wanted
    folder, slash, last = wanted.rpartition("/")
    stem, dot, suffix = last.rpartition(".")
    for number in count(1):
        name = f"{split}/{folder}{slash}{stem}{f'-{number}' if number > 1 else ''}{dot}{suffix}"
        if name not in taken:
            return name


def settle_annotations(
    pictures: Sequence[tuple[Picture, ImageRecord]], category_ids: dict[object, int], format: str, notes: Notes
) -> list[Annotation]:
    """The annotations of a split's pictures, put right; `category_ids` maps the source's keys."""
    kept: list[tuple[SourceBox, Annotation]] = []
    for picture, record in pictures:
        for box in picture.source.boxes:
            annotation = _annotation(box, picture, record, category_ids, format, notes)
            if annotation is not None:
                kept.append((box, annotation))
    ids = assign_ids([box.id for box, _ in kept])
    notes.count("annotation_ids_renumbered", sum(b.id not in (None, n) for (b, _), n in zip(kept, ids, strict=True)))
    return [replace(annotation, id=number) for (_, annotation), number in zip(kept, ids, strict=True)]


def _annotation(
    box: SourceBox, picture: Picture, record: ImageRecord, category_ids: dict, format: str, notes: Notes
) -> Annotation | None:
    """The annotation of a source's box, its id still open; None when the box is left out."""
    bbox = settle_box(box, picture.info, picture.frame, notes)
    if bbox is None:
        return None
    if box.category not in category_ids:
        notes.add("boxes_unknown_category", box.where, repr(box.category)[:80])
        return None
    score = box.extra.get("score", 1)
    if not (is_number(score) and 0 <= score <= 1):
        notes.add("boxes_bad_score", box.where, f"score {score!r}"[:80])
        return None
    extra = dict(box.extra)
    if picture.frame == "stored":
        shapes = [key for key in ("segmentation", "keypoints", "num_keypoints") if extra.pop(key, None) is not None]
        notes.count("shapes_dropped", bool(shapes))
    area, iscrowd, own_area = box.area, box.iscrowd, bbox[2] * bbox[3]
    if not (is_number(area) and area > 0):
        area = own_area
        notes.count("area_filled", format == "coco")  # the other formats have none to miss
    elif not box.fractions and own_area < box.bbox[2] * box.bbox[3] - 1e-6:  # clipped
        area = min(area, own_area)
    if iscrowd not in (0, 1):
        iscrowd = 0
        notes.count("iscrowd_filled", format == "coco")
    return Annotation(0, record.id, category_ids[box.category], bbox, area, int(iscrowd), extra)
