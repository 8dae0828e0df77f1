"""Reads YOLO: a text file of fractions for each picture, and the classes in data.yaml or a list of names.

A line is `class x y w h` (centre, fractions of the upright picture), with a sixth number as the score; a line with
class and three or more points is taken as the box around them. A picture without a label file has no objects. Class
number n becomes category n + 1. Paths in data.yaml are followed inside the source only.
"""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from engine.data.files import Containment
from engine.data.import_report import Notes
from engine.data.import_source import (
    Source,
    SourceBox,
    SourceCategory,
    SourceImage,
    pictures_below,
    split_folders,
    split_word,
)
from engine.errors import DatasetError

MAX_TEXT_BYTES = 16 * 2**20
_NAME_LISTS = ("classes.txt", "obj.names", "names.txt", "labels.txt", "labels/classes.txt")


def find_yolo(src: Path) -> Path | None:
    """The yaml file or the list of names of a YOLO source, or None."""
    if src.is_file():
        return src if src.suffix.lower() in (".yaml", ".yml") else None
    for path in [src / "data.yaml", *sorted(src.glob("*.yaml")), *sorted(src.glob("*.yml"))]:
        if Containment(src).problem(path) is None and "names" in _read_yaml(path):
            return path
    lists = [*(src / name for name in _NAME_LISTS), *sorted(src.glob("*.names"))]
    return next((path for path in lists if path.is_file()), None)


def read_yolo(src: Path, notes: Notes, max_json_bytes: int = 0) -> Source:
    """Read a YOLO source as it is.

    Raises:
        DatasetError: no list of classes, or no pictures at the places that it names.
    """
    config = find_yolo(src)
    if config is None:
        raise DatasetError(
            f"{src} has no list of classes for YOLO: neither data.yaml with 'names' nor {', '.join(_NAME_LISTS)}. "
            "Write the class names, one a line, into classes.txt."
        )
    top = src if src.is_dir() else src.parent
    if problem := Containment(top).problem(config):
        raise DatasetError(f"{config}: {problem}. Put the file itself there.")
    is_yaml = config.suffix.lower() in (".yaml", ".yml")
    content = _read_yaml(config) if is_yaml else {"names": _read_text(config).split("\n")}
    categories = _categories(config, content.get("names"))
    places = _places_of_yaml(top, content) or _places_of_folders(top)
    images, seen = [], set()
    for split, pictures in places:
        for path in pictures:
            if (split, path) not in seen:
                seen.add((split, path))
                images.append(_read_picture(top, path, split or "train", categories, notes))
    if not images:
        raise DatasetError(f"{src}: no pictures where {config.name} or the folders say. Put them below images/.")
    return Source("yolo", categories, images)


def _read_yaml(path: Path) -> dict:
    try:
        content = yaml.safe_load(_read_text(path))
    except (yaml.YAMLError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _read_text(path: Path) -> str:
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise DatasetError(f"{path} has more than {MAX_TEXT_BYTES} bytes. It is no list of classes or labels.")
    return path.read_text(encoding="utf-8-sig", errors="replace")


def _categories(config: Path, names: object) -> dict[int, SourceCategory]:
    if isinstance(names, list):
        while names and (names[-1] is None or not str(names[-1]).strip()):
            names = names[:-1]
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(type(key) is int and key >= 0 for key in names):
        raise DatasetError(f"{config}: 'names' must list the classes, or map numbers from 0 to them.")
    return {key: SourceCategory(str(names[key]).strip(), key + 1) for key in sorted(names)}


Place = tuple[str | None, list[Path]]  # split (None: the source has none), its pictures


def _places_of_yaml(top: Path, content: dict) -> list[Place]:
    base = _inside(top, top, content.get("path") or ".") or top
    places = []
    for key in ("train", "val", "valid", "test"):
        entries = content.get(key)
        for entry in entries if isinstance(entries, list) else [entries] if entries else []:
            found = next((p for b in (base, top) if (p := _inside(top, b, entry)) is not None), None)
            if found is not None:
                places.append((split_word(key), _pictures_of(top, found)))
    return places


def _inside(top: Path, base: Path, entry: object) -> Path | None:
    """The folder or list that an entry means. What leaves the source is read as if the source were the root."""
    if not isinstance(entry, str) or "\0" in entry:
        return None
    root = os.path.realpath(top)
    parts = [part for part in entry.replace("\\", "/").split("/") if part not in ("", ".")]
    while parts and parts[0] == "..":
        parts.pop(0)
    for path in (os.path.join(base, entry), os.path.join(base, *parts)):
        real = os.path.realpath(path)
        if os.path.commonpath([real, root]) == root and os.path.exists(real):
            return Path(os.path.normpath(path))
    return None


def _pictures_of(top: Path, place: Path) -> list[Path]:
    if place.is_dir():
        return list(pictures_below(place))
    lines = [line.strip() for line in _read_text(place).splitlines() if line.strip()]
    found = (_inside(top, place.parent, line) or _inside(top, top, line) for line in lines)
    return [path for path in found if path is not None]


def _places_of_folders(top: Path) -> list[Place]:
    for base in (top / "images", top):
        places = []
        for split in ("train", "val", "test"):
            for folder in split_folders(base, split):
                places.append((split, list(pictures_below(_images_in(folder)))))
        if any(pictures for _, pictures in places):
            return places
    lists = [(split_word(name), top / f"{name}.txt") for name in ("train", "val", "valid", "test")]
    places = [(split, _pictures_of(top, path)) for split, path in lists if Containment(top).problem(path) is None]
    if places:
        return places
    return [(None, list(pictures_below(_images_in(top))))]


def _images_in(folder: Path) -> Path:
    return folder / "images" if (folder / "images").is_dir() else folder


def _read_picture(
    top: Path, path: Path, split: str, categories: dict[int, SourceCategory], notes: Notes
) -> SourceImage:
    relative = path.relative_to(top)
    kept = [part for part in relative.parts if part != "images"] or [path.name]
    image = SourceImage(str(relative), split, "/".join(kept), path)
    containment = Containment(top)
    image.problem = containment.problem(path)
    label = _label_of(top, relative)
    if image.problem:
        image.file = None
    elif label is None:
        notes.count("images_without_labels")
    elif containment.problem(label):
        image.problem = f"its labels: {containment.problem(label)}"
    else:
        image.boxes = _read_labels(label, str(label.relative_to(top)))
    return image


def _label_of(top: Path, relative: Path) -> Path | None:
    parts = list(relative.with_suffix(".txt").parts)
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[-2::-1].index("images")
        swapped = top.joinpath(*parts[:last], "labels", *parts[last + 1 :])
        if swapped.is_file():
            return swapped
    beside = [top / relative.with_suffix(".txt"), top / "labels" / relative.with_suffix(".txt")]
    return next((path for path in beside if path.is_file()), None)


def _read_labels(path: Path, where: str) -> list[SourceBox]:
    boxes = []
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        if line.strip():
            boxes.append(_read_line(line, f"{where} line {number}"))
    return boxes


def _read_line(line: str, where: str) -> SourceBox:
    try:
        values = [float(word) for word in line.split()]
    except ValueError:
        return SourceBox(where, None, f"line {line[:80]!r}", fractions=True)
    category, numbers = values[0], values[1:]
    key = int(category) if category.is_integer() else category
    if len(numbers) in (4, 5):
        x, y, w, h = numbers[:4]
        extra = {"score": numbers[4]} if len(numbers) == 5 else {}
        return SourceBox(where, key, [x - w / 2, y - h / 2, w, h], fractions=True, extra=extra)
    if len(numbers) >= 6 and len(numbers) % 2 == 0:
        xs, ys = numbers[0::2], numbers[1::2]
        box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
        return SourceBox(where, key, box, fractions=True)
    return SourceBox(where, key, f"line {line[:80]!r}", fractions=True)
