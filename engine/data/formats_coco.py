"""Reads COCO: a json file, or a folder of pictures and one json for each split.

Jsons are looked for in the folder, in annotations/, and in folders named after splits. The split is read off the file's
name, else off its folder's (instances_val2017.json, valid/_annotations.coco.json). Pictures are looked for below
images/, below a folder named after the split, and beside the json. captions_*.json gives captions to the pictures of
its split.
"""

from __future__ import annotations

from pathlib import Path

from engine.data.bounded_json import read_json
from engine.data.files import Containment
from engine.data.import_report import Notes
from engine.data.import_source import (
    Source,
    SourceBox,
    SourceCategory,
    SourceImage,
    find_picture,
    split_folders,
    split_word,
)
from engine.errors import DatasetError

_OTHER_TASKS = ("person_keypoints", "stuff", "panoptic", "image_info", "captions")
_ANNOTATION_CORE = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
_IMAGE_CORE = ("id", "file_name", "width", "height")


def find_coco(src: Path) -> list[Path]:
    """Json files at the places where COCO has them; empty when there are none."""
    if src.is_file():
        return [src] if src.suffix.lower() == ".json" else []
    folders = [src, src / "annotations", *(d for d in sorted(src.iterdir()) if d.is_dir() and split_word(d.name))]
    return [path for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.json"))]


def read_coco(src: Path, notes: Notes, max_json_bytes: int) -> Source:
    """Read a COCO source as it is.

    Raises:
        DatasetError: no COCO json, an unreadable one, or jsons whose splits cannot be told apart.
    """
    documents: dict[Path, dict] = {}
    captions: dict[str | None, dict] = {}
    top = Containment(src if src.is_dir() else src.parent)
    for path in find_coco(src):
        if problem := top.problem(path):
            raise DatasetError(f"{path}: {problem}. Put the file itself there.")
        if not src.is_file() and path.name.lower().startswith(_OTHER_TASKS[:-1]):
            notes.add("files_ignored", path.name, "not a detection file")
            continue
        document = read_json(path, max_json_bytes, non_finite_as_null=True)
        if not isinstance(document, dict) or not all(
            isinstance(document.get(key), list) for key in ("images", "annotations")
        ):
            notes.add("files_ignored", path.name, "it has no lists 'images' and 'annotations'")
        elif "categories" not in document and path.name.lower().startswith("captions"):
            captions[_split_of(path)] = document
        else:
            documents[path] = document
    if not documents:
        ignored = "; ".join(f"{n.where}: {n.detail}" for n in notes.entries if n.kind == "files_ignored")
        found = f" ({ignored})" if ignored else ""
        raise DatasetError(f"{src} holds no COCO detection json{found}. Name the json file.")
    splits = _tell_splits(src, list(documents))
    source = Source("coco", {}, [])
    for number, (path, document) in enumerate(documents.items()):
        _read_document(src, path, number, splits[path], document, captions.get(_split_of(path)), source, notes)
    return source


def _split_of(path: Path) -> str | None:
    if path.stem == "annotations":  # of a generated dataset: no split
        return None
    return split_word(path.stem) or split_word(path.parent.name)


def _tell_splits(src: Path, paths: list[Path]) -> dict[Path, str]:
    splits = {path: _split_of(path) for path in paths}
    if len(paths) == 1:
        return {path: split or "train" for path, split in splits.items()}
    if None in splits.values() or len(set(splits.values())) < len(paths):
        found = ", ".join(f"{p.relative_to(src)} ({split or 'no split in its name'})" for p, split in splits.items())
        raise DatasetError(
            f"{src} holds several COCO files, and their names do not tell one split each: {found}. "
            "Name them train.json, val.json and test.json, or import one json file."
        )
    return splits


def _picture_roots(src: Path, path: Path, split: str) -> tuple[list[Path], Path]:
    """Where pictures may lie, in order, and the folder that they must not leave."""
    top = src if src.is_dir() else path.parent.parent if path.parent.name == "annotations" else path.parent
    roots = []
    for base in dict.fromkeys((path.parent, top)):
        roots += [*split_folders(base / "images", split), base / "images", *split_folders(base, split), base]
    return roots, top


def _read_document(
    src: Path, path: Path, number: int, split: str, document: dict, captions: dict | None, source: Source, notes: Notes
) -> None:
    categories = document.get("categories")
    for entry in categories if isinstance(categories, list) else []:
        if isinstance(entry, dict):
            key = (number, _key(entry.get("id")))
            source.categories[key] = SourceCategory(entry.get("name"), entry.get("id"), entry.get("supercategory", ""))
    roots, allowed = _picture_roots(src, path, split)
    containment = Containment(allowed)
    texts = _first_captions(captions)
    images: dict[object, SourceImage] = {}
    for position, entry in enumerate(document["images"]):
        where = f"{path.name} image number {position + 1}"
        if not isinstance(entry, dict):
            notes.add("images_refused", where, "it is no object")
            continue
        where = f"{path.name} image {_shown(entry.get('id'))} ({_shown(entry.get('file_name'))})"
        file, name, problem = find_picture(entry.get("file_name"), roots, containment)
        image = SourceImage(where, split, name, file, problem, entry.get("id"), _declared(entry))
        image.extra = {key: value for key, value in entry.items() if key not in _IMAGE_CORE}
        key = _key(entry.get("id"))
        if key in texts and "caption" not in image.extra:
            image.extra["caption"] = texts[key]
            notes.count("captions_added")
        if key in images:  # whose boxes are whose cannot be known
            for twin in (image, images[key]):
                twin.problem = "two images have the same id, so their boxes cannot be told apart"
        images.setdefault(key, image)
        source.images.append(image)
    for position, entry in enumerate(document["annotations"]):
        _read_annotation(entry, f"{path.name} annotation", position, number, images, notes)


def _read_annotation(entry, kind: str, position: int, number: int, images: dict, notes: Notes) -> None:
    if not isinstance(entry, dict):
        notes.add("boxes_malformed", f"{kind} number {position + 1}", "it is no object")
        return
    where = f"{kind} {_shown(entry.get('id'))}" if "id" in entry else f"{kind} number {position + 1}"
    image = images.get(_key(entry.get("image_id")))
    if image is None:
        notes.add("boxes_unknown_image", where, f"image_id {_shown(entry.get('image_id'))}")
        return
    category = (number, _key(entry.get("category_id")))
    box = SourceBox(where, category, entry.get("bbox"), False, entry.get("id"), entry.get("iscrowd"), entry.get("area"))
    box.extra = {key: value for key, value in entry.items() if key not in _ANNOTATION_CORE}
    image.boxes.append(box)


def _declared(entry: dict) -> tuple | None:
    return (entry["width"], entry["height"]) if "width" in entry and "height" in entry else None


def _first_captions(document: dict | None) -> dict[object, str]:
    """The caption with the lowest id of each picture."""
    entries = [e for e in (document or {}).get("annotations", []) if isinstance(e, dict)]
    texts: dict[object, str] = {}
    for entry in sorted(entries, key=lambda e: e["id"] if type(e.get("id")) is int else 0):
        if isinstance(entry.get("caption"), str):
            texts.setdefault(_key(entry.get("image_id")), entry["caption"].strip())
    return texts


def _key(value: object) -> object:
    """1, "1" and True are three different ids."""
    return (type(value).__name__, repr(value))


def _shown(value: object) -> str:
    return repr(value)[:80] if not isinstance(value, str) else value[:80]
