"""The dataset folder: images/ and one COCO json for each split. Read strictly, written atomically."""

from __future__ import annotations

import hashlib
import json
import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from PIL import Image

from engine.data.bounded_json import MAX_JSON_BYTES, read_json
from engine.data.coco_checks import check_document
from engine.data.files import Containment, file_sha256, write_atomically
from engine.data.findings import Finding, error, raise_errors
from engine.data.images import load_image
from engine.data.records import Annotation, Category, ImageRecord
from engine.errors import DatasetError

__all__ = [
    "Annotation", "Category", "Dataset", "ImageRecord",
    "file_findings", "read_dataset", "splits_of", "split_path", "subset", "to_coco", "write_dataset",
]  # fmt: skip

SPLITS = ("train", "val", "test", "annotations")  # a generated folder has annotations.json
_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Dataset:
    """One split of a dataset folder, checked. Boxes are pixels of the upright pictures."""

    folder: Path
    split: str
    images: tuple[ImageRecord, ...]
    categories: tuple[Category, ...]
    annotations: tuple[Annotation, ...]

    @cached_property
    def _by_image(self) -> dict[int, tuple[Annotation, ...]]:
        groups: dict[int, list[Annotation]] = {}
        for annotation in self.annotations:
            groups.setdefault(annotation.image_id, []).append(annotation)
        return {image_id: tuple(group) for image_id, group in groups.items()}

    def annotations_of(self, image_id: int) -> tuple[Annotation, ...]:
        """All annotations of an image, in file order; empty when it has none."""
        return self._by_image.get(image_id, ())

    def image_path(self, image: ImageRecord) -> Path:
        """Where the picture lies.

        Raises:
            DatasetError: it is missing, or leaves the folder through a link; names the image.
        """
        path = self.folder / "images" / image.file_name
        problem = Containment(self.folder).problem(path)
        if problem:
            raise DatasetError(f"{path} (image {image.id} of {self.split}.json): {problem}. Put the picture there.")
        return path

    def load(self, image: ImageRecord) -> Image.Image:
        """The picture, upright RGB, of exactly the declared size.

        Raises:
            DatasetError: missing, broken, or of another size; names the image.
        """
        path = self.image_path(image)
        try:
            return load_image(path, (image.width, image.height))
        except DatasetError as problem:
            raise DatasetError(f"Image {image.id} of {self.split}.json: {problem}") from None

    def digest(self) -> str:
        """sha256 over the json content (records sorted by id) and the sha256 of every picture's bytes.

        Equal for equal labels and pixels, wherever the folder lies and in whatever order the json was. Reads all
        pictures.
        """
        whole = hashlib.sha256(json.dumps(to_coco(self), sort_keys=True).encode())
        for image in sorted(self.images, key=lambda image: image.id):
            whole.update(f"\n{image.id} {file_sha256(self.image_path(image))}".encode())
        return whole.hexdigest()


def read_dataset(folder: Path | str, split: str, *, max_json_bytes: int = MAX_JSON_BYTES) -> Dataset:
    """Read `<folder>/<split>.json`, strictly. Pictures are looked for, not opened.

    Args:
        folder: a dataset folder, with images/.
        split: "train", "val", "test", "annotations", or another plain name.
        max_json_bytes: a larger json is refused before it is read.

    Raises:
        DatasetError: the json breaks the contract, or a picture is missing or lies outside; lists the first ten.
    """
    folder = Path(folder)
    path = split_path(folder, split)
    checked = check_document(read_json(path, max_json_bytes), path.name)
    raise_errors(path, [*checked.findings, *file_findings(folder, checked.images, path.name)])
    return Dataset(folder, split, checked.images, checked.categories, checked.annotations)


def split_path(folder: Path, split: str) -> Path:
    """The json of a split that is there.

    Raises:
        DatasetError: no such folder or split, a split name that is no plain name, a link that leaves the folder.
    """
    if not isinstance(split, str) or not _SPLIT_NAME.fullmatch(split):
        raise DatasetError(f"{split!r} is no name of a split. Splits are {', '.join(SPLITS)}.")
    if not folder.is_dir():
        raise DatasetError(f"There is no dataset folder {folder}. Check the path, or make one with `de import`.")
    path = folder / f"{split}.json"
    if not path.exists():
        found = ", ".join(splits_of(folder)) or "none; is it a source that `de import` should turn into a dataset?"
        raise DatasetError(f"{folder} has no split '{split}': there is no {path.name}. Splits found: {found}")
    problem = Containment(folder).problem(path)
    if problem:
        raise DatasetError(f"{path}: {problem}. Put the file itself into the folder.")
    return path


def splits_of(folder: Path | str) -> list[str]:
    """The splits that a dataset folder has, of train, val, test and annotations, in that order."""
    return [split for split in SPLITS if (Path(folder) / f"{split}.json").is_file()]


def file_findings(folder: Path, images: Sequence[ImageRecord], name: str) -> list[Finding]:
    """An error for every picture that is missing or lies outside the folder. Opens none."""
    containment = Containment(folder)
    findings = []
    for image in images:
        problem = containment.problem(folder / "images" / image.file_name)
        if problem:
            where = f"{name} image {image.id} ({image.file_name})"
            findings.append(error(where, problem, "Put the picture below images/, or remove the entry."))
    return findings


def write_dataset(
    folder: Path | str,
    split: str,
    images: Iterable[ImageRecord],
    annotations: Iterable[Annotation],
    categories: Iterable[Category],
) -> Path:
    """Write `<folder>/<split>.json` in one atomic step; pictures are the caller's business.

    Equal records give equal bytes, in whatever order they come: records sorted by id, keys sorted, one record a line,
    numbers in their shortest exact form.

    Returns:
        The path of the json.

    Raises:
        DatasetError: the records break the contract; nothing is written.
    """
    folder = Path(folder)
    if not _SPLIT_NAME.fullmatch(split):
        raise DatasetError(f"{split!r} is no name of a split. Splits are {', '.join(SPLITS)}.")
    path = folder / f"{split}.json"
    document = to_coco(Dataset(folder, split, tuple(images), tuple(categories), tuple(annotations)))
    raise_errors(path, check_document(document, path.name).findings)
    try:
        content = _format(document)
    except ValueError as problem:  # NaN or Infinity somewhere in `extra`
        raise DatasetError(f"{path} was not written: {problem}. Remove the value from the records' extra.") from None
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    return path


def subset(dataset: Dataset, image_ids: Iterable[int]) -> Dataset:
    """The dataset with only these images and their annotations; all categories stay, the order stays.

    Raises:
        DatasetError: an id is not in the dataset.
    """
    wanted = set(image_ids)
    unknown = wanted - {image.id for image in dataset.images}
    if unknown:
        raise DatasetError(f"{dataset.split}.json in {dataset.folder} has no image {sorted(unknown)[:10]}.")
    return replace(
        dataset,
        images=tuple(image for image in dataset.images if image.id in wanted),
        annotations=tuple(a for a in dataset.annotations if a.image_id in wanted),
    )


def to_coco(dataset: Dataset) -> dict:
    """The COCO document of a dataset: images, annotations, categories, each sorted by id."""
    return {
        "images": sorted((_image_entry(image) for image in dataset.images), key=_id),
        "annotations": sorted((_annotation_entry(a) for a in dataset.annotations), key=_id),
        "categories": sorted((_category_entry(c) for c in dataset.categories), key=_id),
    }


def _id(entry: dict) -> int:
    return entry["id"]


def _image_entry(image: ImageRecord) -> dict:
    size = {"width": operator.index(image.width), "height": operator.index(image.height)}
    return {**image.extra, "id": operator.index(image.id), "file_name": image.file_name, **size}


def _category_entry(category: Category) -> dict:
    return {"id": operator.index(category.id), "name": category.name, "supercategory": category.supercategory}


def _annotation_entry(annotation: Annotation) -> dict:
    return {
        **annotation.extra,
        "id": operator.index(annotation.id),
        "image_id": operator.index(annotation.image_id),
        "category_id": operator.index(annotation.category_id),
        "bbox": [_shortest(value) for value in annotation.bbox_xywh],
        "area": _shortest(annotation.area),
        "iscrowd": operator.index(annotation.iscrowd),
    }


def _shortest(value: float) -> int | float:
    """10.0 as 10, so that a box has one spelling; never rounded, since rounding moves AP."""
    number = float(value)
    return int(number) if number.is_integer() else number


def _format(document: dict) -> bytes:
    parts = []
    for key in sorted(document):
        lines = ",\n".join(json.dumps(entry, sort_keys=True, allow_nan=False) for entry in document[key])
        parts.append(f"{json.dumps(key)}: [\n{lines}\n]" if lines else f"{json.dumps(key)}: []")
    return ("{" + ",\n".join(parts) + "}\n").encode()
