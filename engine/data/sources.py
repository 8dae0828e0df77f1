"""Where generated images come from: the labelled training images, and pictures without labels where there are any."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from engine.data.dataset import Dataset, read_dataset
from engine.errors import DatasetError

TRAIN, UNLABELLED = "train", "unlabelled"


def has_unlabelled(folder: Path) -> bool:
    """Whether a dataset folder has unlabelled.json, as `de subset` writes it."""
    return (folder / f"{UNLABELLED}.json").is_file()


def read_sources(folder: Path, unlabelled: bool) -> Dataset:
    """train.json of a dataset folder, and with `unlabelled` the pictures of unlabelled.json behind it, without boxes.

    Raises:
        DatasetError: a split cannot be read or is missing, the classes differ, or an image is in both.
    """
    train = read_dataset(folder, TRAIN)
    if not unlabelled:
        return train
    if not has_unlabelled(folder):
        raise DatasetError(
            f"{folder} has no {UNLABELLED}.json, and generation.unlabelled asks for it. It is a COCO json of pictures "
            "without annotations; `de subset` writes one. Or set generation.unlabelled=false."
        )
    more = read_dataset(folder, UNLABELLED)
    path = folder / f"{UNLABELLED}.json"
    if more.categories != train.categories:
        raise DatasetError(f"{path} lists other classes than {TRAIN}.json. Give both the same categories.")
    ids, names = {image.id for image in train.images}, {image.file_name for image in train.images}
    both = [image for image in more.images if image.id in ids or image.file_name in names]
    if both:
        raise DatasetError(
            f"{path}: image {both[0].id} ({both[0].file_name}) has an id or a file of {TRAIN}.json, as "
            f"{len(both)} of its images do. Leave them out, or give them ids of their own."
        )
    return dataclasses.replace(train, images=train.images + more.images)
