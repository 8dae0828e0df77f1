"""What every reader of a foreign format hands to the import: the source's own words, nothing put right yet."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from engine.data.files import Containment, name_problem

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".jp2", ".mpo")
NOT_FOUND = "there is no such file in the places where pictures are looked for"
_SPLIT_WORDS = {
    "train": "train", "training": "train", "trainval": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass
class SourceBox:
    """One label. `bbox` is XYWH, in pixels or in fractions of the picture, or whatever stands in its place."""

    where: str
    category: object  # a key of Source.categories
    bbox: object
    fractions: bool = False
    id: object = None
    iscrowd: object = None
    area: object = None
    extra: dict = field(default_factory=dict)


@dataclass
class SourceImage:
    """One picture: where it was found, or why it cannot be used."""

    where: str
    split: str
    name: str  # wanted name below images/
    file: Path | None = None
    problem: str | None = None
    id: object = None
    declared_size: tuple[object, object] | None = None
    boxes: list[SourceBox] = field(default_factory=list)
    extra: dict = field(default_factory=dict)


@dataclass
class SourceCategory:
    """One class; `id` is None where the source has no usable one."""

    name: object
    id: object = None
    supercategory: object = ""


@dataclass
class Source:
    """A whole source; the categories in the order in which they get ids. What has no split of its own is train."""

    format: str
    categories: dict[object, SourceCategory]
    images: list[SourceImage]


def split_word(name: str) -> str | None:
    """The split that a file or folder name speaks of: instances_train2017 -> train, valid -> val."""
    for word in re.split(r"[^a-z]+", name.lower()):
        if word in _SPLIT_WORDS:
            return _SPLIT_WORDS[word]
    return None


def split_folders(base: Path, split: str | None) -> list[Path]:
    """Sub-folders of `base` that are named after a split."""
    if split is None or not base.is_dir():
        return []
    return sorted(d for d in base.iterdir() if d.is_dir() and split_word(d.name) == split)


def find_picture(name: object, roots: Iterable[Path], containment: Containment) -> tuple[Path | None, str, str | None]:
    """Look for a picture below `roots`, in order; nothing outside the containment's root is opened.

    Names that were written on Windows are taken with '/' for the backslash.

    Returns:
        (file or None, name below images/, why there is no file or None).
    """
    if isinstance(name, str):
        name = re.sub(r"^(\./)+", "", name.replace("\\", "/"))
    problem = name_problem(name)
    if problem:
        return None, str(name), problem
    for root in roots:
        path = root / name
        if os.path.lexists(path):
            problem = containment.problem(path)
            return (None if problem else path), _below_images(name), problem
    return None, name, NOT_FOUND


def pictures_below(folder: Path) -> Iterator[Path]:
    """All files with a picture's suffix below a folder, in order; links to folders are not followed."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(IMAGE_SUFFIXES):
                yield Path(parent) / name


def _below_images(name: str) -> str:
    return name.removeprefix("images/") or name
