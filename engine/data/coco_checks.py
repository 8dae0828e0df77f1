"""The rules of the dataset contract, one finding for each breach.

pycocotools accepts most of these breaches and then reports a wrong AP without a word (id 0, ids that repeat, boxes
without area, text for numbers), or dies with a KeyError. So nothing here is put right in passing: reading refuses,
`de import` repairs.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from dataclasses import dataclass

from engine.data.files import name_problem
from engine.data.findings import Finding, error
from engine.data.records import Annotation, Category, ImageRecord

MAX_ID = 2**53  # above it a double, and with it every program in JavaScript, merges neighbouring ids
MAX_SIDE = 10**6  # pixels
EDGE_TOLERANCE = 0.5  # pixels that a box may stick out of its picture: what rounding can do

_IMPORT = "Run `de import` on the source, which repairs this by a stated rule"
_MEND = "Correct or remove it in the json"


@dataclass(frozen=True)
class Checked:
    """The sound records of a document, and what is wrong with the others."""

    images: tuple[ImageRecord, ...] = ()
    annotations: tuple[Annotation, ...] = ()
    categories: tuple[Category, ...] = ()
    findings: tuple[Finding, ...] = ()


def check_document(document: object, name: str) -> Checked:
    """Check one split's json against the dataset contract.

    Args:
        document: the parsed json.
        name: the file's name, for `Finding.where`.
    """
    if not isinstance(document, dict):
        return Checked(findings=(error(name, "it holds no json object", "It is no COCO file. " + _IMPORT + "."),))
    findings: list[Finding] = []
    for key in ("images", "annotations", "categories"):
        if not isinstance(document.get(key), list):
            missing = "is missing" if key not in document else "is not a list"
            findings.append(error(name, f"'{key}' {missing}", f"A COCO detection file has it. {_IMPORT}."))
    if findings:
        return Checked(findings=tuple(findings))
    categories = _check_categories(document["categories"], name, findings)
    images = _check_images(document["images"], name, findings)
    known = _Known(
        images={image.id: image for image in images},
        image_ids=_usable_ids(document["images"]),
        category_ids=_usable_ids(document["categories"]),
    )
    annotations = _check_annotations(document["annotations"], name, known, findings)
    return Checked(tuple(images), tuple(annotations), tuple(categories), tuple(findings))


@dataclass(frozen=True)
class _Known:
    """What annotations may refer to. Ids of records that are wrong otherwise are known, so as not to blame twice."""

    images: dict[int, ImageRecord]
    image_ids: set[int]
    category_ids: set[int]


def id_problem(value: object) -> str | None:
    """Why `value` cannot be an id, or None."""
    if type(value) is not int:
        return f"is {_show(value)}, which is no integer"
    if value < 1:
        return f"is {value}; ids start at 1 (pycocotools never matches an annotation with id 0)"
    if value >= MAX_ID:
        return f"is {_show(value)}; ids stay below 2^53"
    return None


def is_number(value: object) -> bool:
    """Whether `value` is a finite int or float of sensible size, and no bool."""
    return type(value) in (int, float) and -1e12 < value < 1e12


def bbox_problem(bbox: object, width: int, height: int) -> str | None:
    """Why `bbox` (XYWH, pixels) is no box in a picture of that size, or None."""
    if not isinstance(bbox, (list, tuple)) or len(bbox) != 4:
        return f"bbox {_show(bbox)} is not a list of four numbers"
    if not all(is_number(value) for value in bbox):
        return f"bbox {_show(bbox)} holds something that is no finite number"
    x, y, w, h = bbox
    if w <= 0 or h <= 0:
        return f"bbox {_show(bbox)} (x, y, width, height) has no area, an object that nothing can match"
    slack = EDGE_TOLERANCE
    if x < -slack or y < -slack or x + w > width + slack or y + h > height + slack:
        return f"bbox {_show(bbox)} (x, y, width, height) sticks out of its picture of {width} x {height}"
    return None


def _entries(entries: list, kind: str, name: str, findings: list[Finding]) -> Iterator[tuple[str, dict]]:
    """Objects with sound, unrepeated ids, each with the words that say where it is."""
    seen: set[int] = set()
    for position, entry in enumerate(entries):
        where = f"{name} {kind} number {position + 1}"
        if not isinstance(entry, dict):
            findings.append(error(where, f"{_show(entry)} is no object", f"{_MEND}."))
            continue
        problem = "is missing" if "id" not in entry else id_problem(entry["id"])
        if problem:
            findings.append(error(where, f"its id {problem}", f"{_IMPORT}."))
            continue
        where = f"{name} {kind} {entry['id']}"
        if entry["id"] in seen:
            findings.append(error(where, f"another {kind} has the same id", f"{_IMPORT}."))
            continue
        seen.add(entry["id"])
        yield where, entry


def _usable_ids(entries: list) -> set[int]:
    return {entry["id"] for entry in entries if isinstance(entry, dict) and type(entry.get("id")) is int}


def _check_categories(entries: list, name: str, findings: list[Finding]) -> list[Category]:
    categories, names = [], set()
    for where, entry in _entries(entries, "category", name, findings):
        class_name, group = entry.get("name"), entry.get("supercategory", "")
        if not isinstance(class_name, str) or not class_name.strip():
            findings.append(error(where, f"its name is {_show(class_name)}, no text", "Give the class a name."))
        elif class_name in names:
            findings.append(error(where, f"another category is called {_show(class_name)} too", f"{_IMPORT}."))
        elif not isinstance(group, str):
            findings.append(error(where, f"its supercategory is {_show(group)}, no text", f"{_MEND}."))
        else:
            names.add(class_name)
            categories.append(Category(entry["id"], class_name, group))
    return categories


def _check_images(entries: list, name: str, findings: list[Finding]) -> list[ImageRecord]:
    images, names = [], set()
    for where, entry in _entries(entries, "image", name, findings):
        file_name = entry.get("file_name")
        problem = name_problem(file_name)
        if problem:
            findings.append(error(where, f"{problem}; nothing was opened", "Name a file below images/."))
            continue
        where = f"{where} ({file_name})"
        if file_name in names:
            findings.append(error(where, "another image has the same file_name", "Keep one entry for each picture."))
            continue
        names.add(file_name)
        sides = entry.get("width"), entry.get("height")
        if not all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides):
            what = f"width and height are {_show(sides[0])} and {_show(sides[1])}, no size in whole pixels"
            findings.append(error(where, what, f"{_IMPORT}."))
            continue
        extra = {key: value for key, value in entry.items() if key not in ("id", "file_name", "width", "height")}
        images.append(ImageRecord(entry["id"], file_name, *sides, extra))
    return images


_CORE = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")


def _check_annotations(entries: list, name: str, known: _Known, findings: list[Finding]) -> list[Annotation]:
    annotations = []
    for where, entry in _entries(entries, "annotation", name, findings):
        problems = list(_annotation_problems(entry, known))
        for what, advice in problems:
            findings.append(error(where, what, f"{advice}."))
        if not problems and entry["image_id"] in known.images:
            extra = {key: value for key, value in entry.items() if key not in _CORE}
            box = tuple(float(value) for value in entry["bbox"])
            ids = entry["id"], entry["image_id"], entry["category_id"]
            annotations.append(Annotation(*ids, box, float(entry["area"]), entry["iscrowd"], extra))
    return annotations


def _annotation_problems(entry: dict, known: _Known) -> Iterator[tuple[str, str]]:
    for key, ids, table in (
        ("image_id", known.image_ids, "images"),
        ("category_id", known.category_ids, "categories"),
    ):
        value = entry.get(key)
        if type(value) is not int:
            yield f"its {key} is {_show(value)}, which is no integer", _IMPORT
        elif value not in ids:
            yield f"its {key} {_show(value)} is not among the {table}", f"Add the entry to '{table}' or remove this one"
    image = known.images.get(entry["image_id"]) if type(entry.get("image_id")) is int else None
    size = (image.width, image.height) if image else (MAX_SIDE, MAX_SIDE)
    problem = bbox_problem(entry.get("bbox"), *size)
    if problem:
        yield problem, _IMPORT
    if "iscrowd" not in entry:
        yield "iscrowd is missing", _IMPORT
    elif type(entry["iscrowd"]) is not int or entry["iscrowd"] not in (0, 1):
        yield f"iscrowd is {_show(entry['iscrowd'])}, neither 0 nor 1", _IMPORT
    if "area" not in entry:
        yield "area is missing", _IMPORT
    elif not is_number(entry["area"]) or entry["area"] <= 0:
        yield f"area is {_show(entry['area'])}, no positive number", _IMPORT
    if "score" in entry and not (is_number(entry["score"]) and 0 <= entry["score"] <= 1):
        yield f"score is {_show(entry['score'])}, no number from 0 to 1", "Correct the score or drop the box"


def _show(value: object) -> str:
    return reprlib.repr(value)
