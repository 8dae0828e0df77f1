"""Everything that is wrong with a dataset folder, in one list: nothing stops at the first problem."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from engine.cores import usable_cores
from engine.data.bounded_json import MAX_JSON_BYTES, read_json
from engine.data.coco_checks import Checked, check_document
from engine.data.dataset import file_findings, split_path, splits_of
from engine.data.files import file_sha256
from engine.data.findings import Finding, error, warning
from engine.data.images import load_image
from engine.data.import_source import pictures_below
from engine.data.records import Annotation, ImageRecord
from engine.errors import DatasetError

__all__ = ["Finding", "validate_dataset"]

MAX_OVERLAP = 0.8  # IoU above which two boxes of one class are taken for one object, labelled twice
MIN_SPREAD = 8  # of 255: a picture whose values differ less is as good as blank
_SHOWN = 10


@dataclass(frozen=True)
class _Split:
    """A split as far as it could be read, and the content hash of each picture that decodes."""

    name: str
    checked: Checked
    hashes: dict[str, str]  # file_name -> sha256


def validate_dataset(folder: Path | str, *, max_json_bytes: int = MAX_JSON_BYTES) -> list[Finding]:
    """Check a dataset folder completely, pictures included. An empty list means that nothing was found.

    Errors are what `read_dataset` or `load_image` would refuse, and splits that do not fit each other. Warnings are
    near-certain mistakes in the labels: an object labelled twice, classes or images without boxes, one picture in two
    splits, blank pictures, files that no split names.

    Raises:
        DatasetError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(f"There is no dataset folder {folder}. Check the path.")
    names = splits_of(folder)
    if not names:
        what = "no train.json, val.json, test.json or annotations.json"
        return [error(str(folder), what, "Turn a source into a dataset with `de import`.")]
    findings: list[Finding] = []
    splits = [split for name in names if (split := _check_split(folder, name, max_json_bytes, findings))]
    for split in splits:
        findings += _label_warnings(split)
    findings += _between_splits(splits)
    if len(splits) == len(names):
        findings += _unnamed_files(folder, splits)
    return sorted(findings, key=lambda finding: finding.severity)  # errors first, else in the order found


def _check_split(folder: Path, name: str, max_json_bytes: int, findings: list[Finding]) -> _Split | None:
    try:
        document = read_json(split_path(folder, name), max_json_bytes)
    except DatasetError as problem:
        findings.append(error(f"{name}.json", str(problem).rstrip("."), "Nothing else in it was checked."))
        return None
    checked = check_document(document, f"{name}.json")
    missing = file_findings(folder, checked.images, f"{name}.json")
    findings += [*checked.findings, *missing]
    unreadable = {finding.where for finding in missing}
    images = [image for image in checked.images if _where(name, image) not in unreadable]
    hashes: dict[str, str] = {}
    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        outcomes = pool.map(lambda image: _check_picture(folder / "images" / image.file_name, image, name), images)
        for image, (hashed, found) in zip(images, tqdm(outcomes, name, len(images), disable=None), strict=True):
            findings += found
            if hashed:
                hashes[image.file_name] = hashed
    return _Split(name, checked, hashes)


def _check_picture(path: Path, image: ImageRecord, split: str) -> tuple[str | None, list[Finding]]:
    where = _where(split, image)
    try:
        picture = load_image(path, (image.width, image.height))
    except DatasetError as problem:
        return None, [error(where, str(problem).replace(str(path), path.name).rstrip("."), "")]
    low, high = zip(*picture.getextrema(), strict=True)
    found = []
    if max(h - lo for lo, h in zip(low, high, strict=True)) < MIN_SPREAD:
        advice = "Look at it; 10 or 12 bit pixels in a 16 bit file come out black and need scaling."
        found.append(warning(where, "the picture is of almost one colour", advice))
    return file_sha256(path), found


def _label_warnings(split: _Split) -> Iterator[Finding]:
    name, checked = split.name, split.checked
    boxes: dict[int, list[Annotation]] = {}
    for annotation in checked.annotations:
        boxes.setdefault(annotation.image_id, []).append(annotation)
    classes = {category.id: category.name for category in checked.categories}
    for image in checked.images:
        for first, second, overlap in _double_boxes(boxes.get(image.id, [])):
            pair = f"annotations {first.id} and {second.id}, both {classes.get(first.category_id)}"
            what = f"{pair}, overlap by IoU {overlap:.2f}"
            yield warning(_where(name, image), what, "Probably one object labelled twice: remove one.")
    empty = [image.file_name for image in checked.images if image.id not in boxes]
    if empty:
        what = f"{len(empty)} of {len(checked.images)} images have no boxes: {_some(empty)}"
        yield warning(f"{name}.json", what, "Right if they show none of the classes; else label or remove them.")
    counts = Counter(annotation.category_id for annotation in checked.annotations)
    absent = [class_name for number, class_name in classes.items() if not counts[number]]
    if absent:
        what = f"classes without boxes: {_some(absent)}"
        yield warning(f"{name}.json", what, "They cannot be learnt or measured on this split.")


def _double_boxes(annotations: Sequence[Annotation]) -> Iterator[tuple[Annotation, Annotation, float]]:
    """Pairs of one class, no crowds, that overlap by more than MAX_OVERLAP."""
    own = [a for a in annotations if not a.iscrowd]
    if len(own) < 2:
        return
    overlap = _iou(np.array([a.bbox_xywh for a in own]))
    classes = np.array([a.category_id for a in own])
    pairs = np.triu((overlap > MAX_OVERLAP) & (classes[:, None] == classes), 1)
    for i, j in zip(*np.nonzero(pairs), strict=True):
        yield own[i], own[j], float(overlap[i, j])


def _iou(boxes_xywh: np.ndarray) -> np.ndarray:
    """(N, N) intersection over union of (N, 4) boxes."""
    low, size = boxes_xywh[:, :2], boxes_xywh[:, 2:]
    high = low + size
    shared = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    inner = np.clip(shared, 0, None).prod(axis=-1)
    area = size.prod(axis=-1)
    return inner / (area[:, None] + area - inner)


def _between_splits(splits: Sequence[_Split]) -> Iterator[Finding]:
    for split in splits[1:]:
        first = splits[0]
        if set(split.checked.categories) != set(first.checked.categories):
            what = f"its categories are not those of {first.name}.json"
            yield error(f"{split.name}.json", what, "One model serves all splits: give them the same list.")
    homes: dict[str, list[tuple[str, str]]] = {}
    for split in splits:
        for file_name, hashed in split.hashes.items():
            homes.setdefault(hashed, []).append((split.name, file_name))
    for places in homes.values():
        if len(places) > 1:
            where = " and ".join(f"{split}.json ({file_name})" for split, file_name in places[:_SHOWN])
            if len({split for split, _ in places}) > 1:
                yield warning(where, "the same picture in several splits", "It leaks into the measure: keep one.")
            else:
                yield warning(where, "the same picture several times", "Keep one, with all its boxes.")


def _unnamed_files(folder: Path, splits: Sequence[_Split]) -> Iterator[Finding]:
    named = {image.file_name for split in splits for image in split.checked.images}
    present = (path.relative_to(folder / "images").as_posix() for path in pictures_below(folder / "images"))
    unnamed = [name for name in present if name not in named]
    if unnamed:
        what = f"{len(unnamed)} pictures that no split names: {_some(unnamed)}"
        yield warning("images/", what, "Remove them, or add entries.")


def _where(split: str, image: ImageRecord) -> str:
    return f"{split}.json image {image.id} ({image.file_name})"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
