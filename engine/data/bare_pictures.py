"""Pictures that nobody labelled join a dataset folder: generation draws from them, and the adapter labels the drawn."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from engine.cores import usable_cores
from engine.data.dataset import Dataset, read_dataset, splits_of, write_dataset
from engine.data.files import Containment, file_sha256, name_problem
from engine.data.images import ImageInfo, inspect_image
from engine.data.import_source import pictures_below
from engine.data.records import ImageRecord
from engine.data.sources import TRAIN, UNLABELLED, has_unlabelled
from engine.errors import DatasetError

FOLDER = "unlabelled"  # below images/
_SHOWN = 10


@dataclass(frozen=True)
class Added:
    """How many pictures joined, how many the dataset had already in one of its splits, and (picture, why not)."""

    added: int
    known: int
    refused: tuple[tuple[str, str], ...]

    def text(self) -> str:
        """The outcome for people."""
        lines = [f"{self.added} pictures without labels were added. `generation.unlabelled=true` draws from them too."]
        if self.known:
            lines.append(f"Left out: {self.known} that the dataset has already, byte for byte.")
        if self.refused:
            lines.append(f"Refused: {len(self.refused)}")
            lines += [f"  {name}: {why}" for name, why in self.refused[:_SHOWN]]
            lines += [f"  and {len(self.refused) - _SHOWN} more"] if len(self.refused) > _SHOWN else []
        return "\n".join(lines)


def add_pictures(data: Path, pictures: Path) -> Added:
    """Copy the pictures below a folder into a dataset folder and name them in its unlabelled.json, written last.

    Pictures that a split of the dataset has already are left out: one of the test split must not be drawn from.

    Args:
        data: dataset folder with train.json.
        pictures: any folder, searched to its depths; only read. Given again, it adds what is new.

    Raises:
        DatasetError: either folder cannot be used, or not one picture below can.
    """
    train, before = read_dataset(data, TRAIN), _unlabelled(data)
    if pictures.resolve().is_relative_to(data.resolve()) or data.resolve().is_relative_to(pictures.resolve()):
        raise DatasetError(f"{pictures} and the dataset {data} lie in each other. Give a folder of pictures alone.")
    usable, refused = pictures_to_use(pictures)
    seen = {file_sha256(dataset.image_path(image)) for dataset in _splits(data, before) for image in dataset.images}
    known, records = 0, list(before.images if before else ())
    taken = {image.file_name for image in records}
    last = max(image.id for image in (*train.images, *records))
    for name, info in tqdm(usable, "copy", disable=None):
        content = file_sha256(pictures / name)
        if content in seen:
            known += 1
            continue
        seen.add(content)
        file_name = _free_name(f"{FOLDER}/{name}", taken)
        target = data / "images" / file_name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(pictures / name, target)
        taken.add(file_name)
        last += 1
        records.append(ImageRecord(last, file_name, info.width, info.height, {}))
    write_dataset(data, UNLABELLED, records, [], train.categories)
    return Added(len(usable) - known, known, tuple(refused))


def pictures_to_use(folder: Path) -> tuple[list[tuple[str, ImageInfo]], list[tuple[str, str]]]:
    """The pictures below a folder, by their names in it: those that decode whole, and the others with the reason.

    Raises:
        DatasetError: no such folder, or not one picture that can be used.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder} is no folder. Give the folder that your pictures are in.")
    names = [str(path.relative_to(folder).as_posix()) for path in pictures_below(folder)]
    usable, refused = _usable(folder, names)
    if not usable:
        reasons = "".join(f"\n  {name}: {why}" for name, why in refused[:_SHOWN])
        raise DatasetError(f"{folder} has no picture that can be used.{reasons}")
    return usable, refused


def _unlabelled(data: Path) -> Dataset | None:
    return read_dataset(data, UNLABELLED) if has_unlabelled(data) else None


def _splits(data: Path, before: Dataset | None) -> Iterator[Dataset]:
    yield from (read_dataset(data, split) for split in splits_of(data))
    if before is not None:
        yield before


def _usable(folder: Path, names: Sequence[str]) -> tuple[list[tuple[str, ImageInfo]], list[tuple[str, str]]]:
    """Decode every picture: those that can be used, and the others with the reason."""
    containment = Containment(folder)

    def look(name: str) -> ImageInfo | str:
        problem = name_problem(name) or containment.problem(folder / name)
        if problem:
            return problem
        try:
            return inspect_image(folder / name)
        except DatasetError as error:
            return str(error).replace(str(folder / name), Path(name).name)

    usable, refused = [], []
    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        for name, found in zip(names, tqdm(pool.map(look, names), "decode", len(names), disable=None), strict=True):
            if isinstance(found, ImageInfo):
                usable.append((name, found))
            else:
                refused.append((name, found))
    return usable, refused


def _free_name(wanted: str, taken: set[str]) -> str:
    stem, dot, suffix = wanted.rpartition(".")
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}{dot}{suffix}"
    return name
