"""A dataset folder with fewer labels: what a detector learns from when labels are dear."""

from __future__ import annotations

import dataclasses
import difflib
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from engine.data.dataset import Dataset, ImageRecord, read_dataset, write_dataset
from engine.data.files import link_or_copy
from engine.data.sources import TRAIN, UNLABELLED
from engine.errors import DatasetError

_KEPT = ("val", "test")


def choose_labelled(train: Dataset, count: int, seed: int) -> list[ImageRecord]:
    """`count` training images in a random order of the seed, but every class as soon as possible: the n first of a
    larger choice are the choice of n.

    Raises:
        DatasetError: more images than there are, or none.
    """
    if not 0 < count <= len(train.images):
        raise DatasetError(f"{train.folder / TRAIN}.json has {len(train.images)} images: {count} cannot be chosen.")
    order = [train.images[place] for place in np.random.default_rng(seed).permutation(len(train.images))]
    missing = {annotation.category_id for annotation in train.annotations if not annotation.iscrowd}
    first = []
    for image in order:
        shown = {a.category_id for a in train.annotations_of(image.id) if not a.iscrowd}
        if shown & missing:
            first.append(image)
            missing -= shown
    chosen = {image.id for image in first}
    return [*first, *(image for image in order if image.id not in chosen)][:count]


def write_subset(
    data: Path, out: Path, count: int | None, seed: int = 0, without: Collection[str] = ()
) -> dict[str, int]:
    """Write `out`: train.json with `count` of the training images (None: all), unlabelled.json with the others and
    those of `data`, if any (no boxes, no captions), val.json and test.json as they are. Pictures are linked where the
    disk can, else copied. Returns the number of images by split.

    Args:
        without: pictures that are left out of whatever split they are in, by `file_name`, before any is chosen.

    Raises:
        DatasetError: `out` is there already, `data` cannot be used, or it has no picture of a name in `without`.
    """
    if out.exists():
        raise DatasetError(f"{out} is there already. Give a new folder, or remove it.")
    splits = {
        split: read_dataset(data, split)
        for split in (TRAIN, UNLABELLED, *_KEPT)
        if split == TRAIN or (data / f"{split}.json").is_file()
    }
    _check_names(data, without, splits.values())
    splits = {split: _leave_out(dataset, without) for split, dataset in splits.items()}
    train, bare = splits[TRAIN], splits.get(UNLABELLED)

    chosen = {image.id for image in choose_labelled(train, len(train.images) if count is None else count, seed)}
    labelled = [image for image in train.images if image.id in chosen]
    rest = [without_caption(image) for image in train.images if image.id not in chosen]
    rest += bare.images if bare else ()
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for dataset in splits.values():
        for image in dataset.images:
            link_or_copy(dataset.image_path(image), partial / "images" / image.file_name)
    boxes = [annotation for annotation in train.annotations if annotation.image_id in chosen]
    write_dataset(partial, TRAIN, labelled, boxes, train.categories)
    if rest:
        write_dataset(partial, UNLABELLED, rest, [], train.categories)
    kept = {split: dataset for split, dataset in splits.items() if split in _KEPT}
    for split, dataset in kept.items():
        write_dataset(partial, split, dataset.images, dataset.annotations, dataset.categories)
    partial.rename(out)
    sizes = {split: len(dataset.images) for split, dataset in kept.items()}
    return {TRAIN: len(labelled), UNLABELLED: len(rest), **sizes}


def _check_names(data: Path, without: Collection[str], splits: Iterable[Dataset]) -> None:
    """
    Raises:
        DatasetError: a name that no picture of the splits has.
    """
    names = sorted({image.file_name for dataset in splits for image in dataset.images})
    for name in without:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3)
            hint = f" Did you mean {', '.join(near)}?" if near else " Give names as its json files have them."
            raise DatasetError(f"{data} has no picture {name} to leave out.{hint}")


def _leave_out(dataset: Dataset, without: Collection[str]) -> Dataset:
    images = tuple(image for image in dataset.images if image.file_name not in without)
    ids = {image.id for image in images}
    return dataclasses.replace(
        dataset, images=images, annotations=tuple(a for a in dataset.annotations if a.image_id in ids)
    )


def without_caption(image: ImageRecord) -> ImageRecord:
    """An image without its caption: whoever has no labels has no words that name the objects either."""
    return dataclasses.replace(image, extra={k: v for k, v in image.extra.items() if k != "caption"})
