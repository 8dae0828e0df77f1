"""Reads Pascal VOC: one xml for each picture, and lists of names in ImageSets/Main.

Boxes are [xmin, ymin, xmax - xmin, ymax - ymin] at face value: most tools write corners from 0, only the original VOC
counts from 1, and a file does not say which it does. `truncated` and `difficult` are kept as extra keys; a difficult
object stays an ordinary one. The picture is looked for by the xml's <filename>, then by the xml's own name: beside the
xml, then in JPEGImages/ or images/ of each folder above it, up to the one that holds the source. <path> is never
followed.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from engine.data.files import Containment
from engine.data.import_report import Notes
from engine.data.import_source import (
    IMAGE_SUFFIXES,
    NOT_FOUND,
    Source,
    SourceBox,
    SourceCategory,
    SourceImage,
    find_picture,
    split_word,
)
from engine.errors import DatasetError

MAX_XML_BYTES = 16 * 2**20
_LISTS = ("train", "val", "test", "trainval")


def find_voc(src: Path) -> list[Path]:
    """All xml files of a source, in order."""
    return sorted(path for path in src.rglob("*.xml") if path.is_file()) if src.is_dir() else []


def read_voc(src: Path, notes: Notes, max_json_bytes: int = 0) -> Source:
    """Read a VOC source as it is. Classes get ids from 1 in the order of their names.

    Raises:
        DatasetError: there is no xml.
    """
    paths = find_voc(src)
    if not paths:
        raise DatasetError(f"{src} holds no xml files of Pascal VOC. Name the folder that has Annotations/.")
    splits = _splits(src, paths, notes)
    images = [_read_picture(src, path, splits[path], notes) for path in paths if path in splits]
    images.sort(key=lambda image: image.name)
    names = sorted({box.category for image in images for box in image.boxes})
    categories = {name: SourceCategory(name, number) for number, name in enumerate(names, start=1)}
    return Source("voc", categories, images)


def _splits(src: Path, paths: list[Path], notes: Notes) -> dict[Path, str]:
    """The split of each xml: by the lists, else by the folders' names, else all are train."""
    lists = _read_lists(src)
    if lists:
        splits = {}
        for path in paths:
            own = [split for split in ("test", "val", "train") if path.stem in lists.get(split, ())]
            if not own:
                notes.add("images_refused", path.name, "no list in ImageSets/Main names it")
                continue
            if len(own) > 1:
                notes.add("images_in_two_splits", path.name, f"in {' and '.join(own)}; kept in {own[0]}")
            splits[path] = own[0]
        stems = {path.stem for path in paths}
        for split, names in lists.items():
            for name in sorted(set(names) - stems):
                notes.add("images_refused", name, f"{split}.txt names it, but there is no xml")
        return splits
    by_folder = {path: split_word(path.parent.name) or split_word(path.parent.parent.name) for path in paths}
    return by_folder if all(by_folder.values()) else dict.fromkeys(paths, "train")


def _read_lists(src: Path) -> dict[str, list[str]]:
    """Names in ImageSets/Main/{train,val,test}.txt; trainval.txt stands for train where that is missing."""
    lists: dict[str, list[str]] = {}
    for folder in sorted(src.rglob("ImageSets/Main")):
        for name in _LISTS:
            path = folder / f"{name}.txt"
            if Containment(src).problem(path) is None:
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
                lists.setdefault(name, []).extend(line.strip() for line in lines if line.strip())
    trainval = lists.pop("trainval", None)
    if trainval is not None and "train" not in lists:
        held_out = {*lists.get("val", ()), *lists.get("test", ())}
        lists["train"] = [name for name in trainval if name not in held_out]
    return lists


def _read_picture(src: Path, path: Path, split: str, notes: Notes) -> SourceImage:
    where = str(path.relative_to(src))
    try:
        root = _parse(path, Containment(src))
    except DatasetError as problem:
        return SourceImage(where, split, path.stem, problem=str(problem))
    file, name, problem = _find(src, path, (root.findtext("filename") or "").strip())
    declared = (_whole(root.findtext("size/width")), _whole(root.findtext("size/height")))
    image = SourceImage(where, split, name, file, problem, declared_size=declared if None not in declared else None)
    for number, element in enumerate(root.iter("object"), start=1):
        box_where = f"{where} object {number}"
        class_name = (element.findtext("name") or "").strip()
        if not class_name:
            notes.add("boxes_unknown_category", box_where, "it has no name")
            continue
        flags = {key: _whole(element.findtext(key)) for key in ("truncated", "difficult")}
        extra = {key: value for key, value in flags.items() if value is not None}
        ignored = _whole(element.findtext("iscrowd"))  # our own exports say so; others know only `difficult`
        image.boxes.append(SourceBox(box_where, class_name, _box(element), iscrowd=ignored, extra=extra))
    return image


def _parse(path: Path, containment: Containment) -> Element:
    """The xml's root; entities, large files and links out of the source are refused."""
    if problem := containment.problem(path):
        raise DatasetError(problem)
    if path.stat().st_size > MAX_XML_BYTES:
        raise DatasetError(f"the xml has more than {MAX_XML_BYTES} bytes")
    try:
        root = fromstring(path.read_bytes())
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise DatasetError(f"the xml cannot be read ({type(error).__name__}: {error})") from None
    if root.tag != "annotation":
        raise DatasetError(f"its root is <{root.tag}>, not <annotation>")
    return root


def _find(src: Path, path: Path, filename: str) -> tuple[Path | None, str, str | None]:
    """The picture of an xml. `filename` counts by its last part only."""
    tops = [path.parent, *path.parent.parents]
    tops = tops[: tops.index(src.parent) + 1] if src.parent in tops else [path.parent]
    own = path.parent.name
    roots = [path.parent]
    for top in tops:
        roots += [folder for base in (top / "JPEGImages", top / "images") for folder in (base / own, base)]
    names = [filename.replace("\\", "/").rsplit("/", 1)[-1], *(path.stem + suffix for suffix in IMAGE_SUFFIXES)]
    problem = f"no picture {names[0] or path.stem} beside the xml, in JPEGImages/ or in images/"
    containment = Containment(src.parent)
    for name in filter(None, names):
        file, found, why = find_picture(name, roots, containment)
        if file is not None:
            return file, found, None
        problem = why if why != NOT_FOUND else problem
    return None, names[0] or path.stem, problem


def _box(element: Element) -> list[float] | str:
    """XYWH at face value, or the words that stand in its place."""
    texts = [element.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
    try:
        x0, y0, x1, y1 = (float(text) for text in texts)
    except (TypeError, ValueError):
        return f"corners {texts}"
    return [x0, y0, x1 - x0, y1 - y0]


def _whole(text: str | None) -> int | None:
    try:
        return int(float(text))
    except (TypeError, ValueError, OverflowError):
        return None
