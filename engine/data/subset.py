"""A dataset folder with fewer labels: what a detector learns from when labels are dear."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np

from engine.data.dataset import Dataset, ImageRecord, read_dataset, splits_of, write_dataset
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


def write_subset(data: Path, out: Path, count: int, seed: int = 0) -> dict[str, int]:
    """Write `out`: train.json with `count` of the training images, unlabelled.json with the others, if any (no boxes,
    no captions), val.json and test.json as they are. Pictures are linked where the disk can, else copied. Returns the
    number of images by split.

    Raises:
        DatasetError: `out` is there already, or `data` cannot be used.
    """
    if out.exists():
        raise DatasetError(f"{out} is there already. Give a new folder, or remove it.")
    train = read_dataset(data, TRAIN)
    kept = {split: read_dataset(data, split) for split in _KEPT if split in splits_of(data)}
    chosen = {image.id for image in choose_labelled(train, count, seed)}
    labelled = [image for image in train.images if image.id in chosen]
    rest = [without_caption(image) for image in train.images if image.id not in chosen]
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for dataset in (train, *kept.values()):
        for image in dataset.images:
            link_or_copy(dataset.image_path(image), partial / "images" / image.file_name)
    boxes = [annotation for annotation in train.annotations if annotation.image_id in chosen]
    write_dataset(partial, TRAIN, labelled, boxes, train.categories)
    if rest:
        write_dataset(partial, UNLABELLED, rest, [], train.categories)
    for split, dataset in kept.items():
        write_dataset(partial, split, dataset.images, dataset.annotations, dataset.categories)
    partial.rename(out)
    sizes = {split: len(dataset.images) for split, dataset in kept.items()}
    return {TRAIN: len(labelled), UNLABELLED: len(rest), **sizes}


def without_caption(image: ImageRecord) -> ImageRecord:
    """An image without its caption: whoever has no labels has no words that name the objects either."""
    return dataclasses.replace(image, extra={k: v for k, v in image.extra.items() if k != "caption"})
