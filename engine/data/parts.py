"""A dataset a piece at a time, so that what walks over a million images never holds them all.

Large annotations.json of generated datasets are read along two cursors, one on the images and one on the annotations:
the merge writes one record a line, both in the order of the image ids. All else is read whole (`read_dataset`), which
takes about ten times the size of the json in memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from engine.data.coco_checks import check_document
from engine.data.dataset import Dataset, file_findings, read_dataset, split_path
from engine.data.findings import raise_errors
from engine.errors import DatasetError

PART_IMAGES = 1000
WHOLE_BYTES = 16 * 2**20  # up to here a generated dataset is read whole, in whatever layout it is
_CURE = "Merge the run again (give the command that generates), which writes the file anew."


def dataset_parts(
    folder: Path, split: str, images: int = PART_IMAGES, whole_bytes: int = WHOLE_BYTES
) -> Iterator[Dataset]:
    """The split in pieces of so many images, by rising image id; each is checked as `read_dataset` checks.

    A split without images gives one piece without images, so that its classes are known.

    Raises:
        DatasetError: as `read_dataset`; a large annotations.json that is not laid out as the merge writes it.
    """
    path = split_path(folder, split)
    if split == "annotations" and path.stat().st_size > whole_bytes:
        return _streamed(folder, path, images)
    return _cut(read_dataset(folder, split), images)


def image_ids(folder: Path, split: str, whole_bytes: int = WHOLE_BYTES) -> set[int]:
    """The ids of all images of a split; an int each is all that is kept.

    Raises:
        DatasetError: as `dataset_parts`.
    """
    path = split_path(folder, split)
    if split == "annotations" and path.stat().st_size > whole_bytes:
        return {entry.get("id") for entry in _records(path, "images")}
    return {image.id for image in read_dataset(folder, split).images}


def _cut(dataset: Dataset, images: int) -> Iterator[Dataset]:
    by_id = sorted(dataset.images, key=lambda image: image.id)
    for own in _batches(by_id, images) if by_id else [()]:
        boxes = (box for image in own for box in dataset.annotations_of(image.id))
        yield replace(dataset, images=tuple(own), annotations=tuple(boxes))


def _batches(items: Iterable, size: int) -> Iterator[tuple]:
    iterator = iter(items)
    while batch := tuple(islice(iterator, size)):
        yield batch


def _streamed(folder: Path, path: Path, images: int) -> Iterator[Dataset]:
    categories = list(_records(path, "categories"))
    annotations = _records(path, "annotations")
    waiting = next(annotations, None)
    last_image = last_annotation = 0
    first = True
    for entries in _batches(_records(path, "images"), images):
        own = []
        for entry in entries:
            last_image = _risen(path, "image", entry.get("id"), last_image)
            while waiting is not None and waiting.get("image_id") == last_image:
                last_annotation = _risen(path, "annotation", waiting.get("id"), last_annotation)
                own.append(waiting)
                waiting = next(annotations, None)
        first = False
        yield _checked(folder, path, {"images": list(entries), "annotations": own, "categories": categories})
    if waiting is not None:
        raise _not_ours(path, f"annotation {waiting.get('id')!r} does not come with its image")
    if first:
        yield _checked(folder, path, {"images": [], "annotations": [], "categories": categories})


def _checked(folder: Path, path: Path, document: dict) -> Dataset:
    checked = check_document(document, path.name)
    raise_errors(path, [*checked.findings, *file_findings(folder, checked.images, path.name)])
    return Dataset(folder, path.stem, checked.images, checked.categories, checked.annotations)


def _risen(path: Path, kind: str, value: object, last: int) -> int:
    """Rising ids are ids that do not repeat, and tell where the annotations of an image end."""
    if type(value) is not int or value <= last:
        raise _not_ours(path, f"{kind} id {value!r} comes after {last}")
    return value


def _not_ours(path: Path, why: str) -> DatasetError:
    return DatasetError(f"{path} is too large to be read whole, and not laid out as it was merged: {why}. {_CURE}")


def _records(path: Path, section: str) -> Iterator[dict]:
    """The records of one list of a json that has one record a line; the list may also begin and end on one line."""
    header = re.compile(rb'\{?"' + section.encode() + rb'": ?\[')
    with open(path, "rb") as file:
        begin = next((match for line in file if (match := header.match(line))), None)
        if begin is None:
            raise _not_ours(path, f"no line begins the list '{section}'")
        text = begin.string[begin.end() :].decode().strip()
        while True:
            while text.startswith("{"):
                record, text = _first_record(path, text)
                yield record
            if text.startswith("]"):
                return
            if text not in ("", ","):
                raise _not_ours(path, f"no record on the line {text[:80]!r}")
            line = file.readline()
            if not line:
                raise _not_ours(path, f"the list '{section}' has no end")
            text = line.decode().strip()


def _first_record(path: Path, text: str) -> tuple[dict, str]:
    """The record at the head of a text, and what comes after it."""
    try:
        record, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError) as error:
        raise _not_ours(path, f"{error} in the line {text[:80]!r}") from None
    rest = text[end:].lstrip()
    return record, rest[1:].lstrip() if rest.startswith(",") and rest != "," else rest


def _refuse(word: str):
    raise ValueError(f"{word} is no json number")


_DECODER = json.JSONDecoder(parse_constant=_refuse)
