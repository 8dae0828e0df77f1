"""A dataset folder across two domains: labels from one, pictures and the test from another."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from engine.data.dataset import Annotation, Dataset, read_dataset, splits_of, write_dataset
from engine.data.files import link_or_copy
from engine.data.sources import TRAIN, UNLABELLED
from engine.data.subset import without_caption
from engine.errors import DatasetError


def write_across_domains(source: Path, target: Path, out: Path) -> dict[str, int]:
    """Write `out`: train.json and val.json of `source`, unlabelled.json with the training pictures of `target` (no
    boxes, no captions), test.json of `target`. So a detector that learns from one domain is measured in another, and
    nothing is chosen by labels of that one. Files go to images/source and images/target. Returns the number of images
    by split.

    Raises:
        DatasetError: `out` is there already, the classes differ, or a split is missing.
    """
    if out.exists():
        raise DatasetError(f"{out} is there already. Give a new folder, or remove it.")
    train, pictures, test = read_dataset(source, TRAIN), read_dataset(target, TRAIN), read_dataset(target, "test")
    if [c.name for c in train.categories] != [c.name for c in test.categories]:
        raise DatasetError(
            f"{source} and {target} list different classes: {[c.name for c in train.categories]} and "
            f"{[c.name for c in test.categories]}. Two domains of one task have the same."
        )
    splits = {TRAIN: train, UNLABELLED: pictures, "test": test}
    if "val" in splits_of(source):
        splits["val"] = read_dataset(source, "val")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    offset = max(image.id for image in train.images)
    ids = {c.name: c.id for c in train.categories}
    for split, dataset in splits.items():
        where = "source" if split in (TRAIN, "val") else "target"
        shift = offset if split == UNLABELLED else 0  # its ids stand beside those of train.json
        for image in dataset.images:
            link_or_copy(dataset.image_path(image), partial / "images" / where / image.file_name)
        images = [dataclasses.replace(i, id=i.id + shift, file_name=f"{where}/{i.file_name}") for i in dataset.images]
        if split == UNLABELLED:
            images = [without_caption(image) for image in images]
        write_dataset(partial, split, images, _labels(split, dataset, ids), train.categories)
    partial.rename(out)
    return {split: len(dataset.images) for split, dataset in splits.items()}


def _labels(split: str, dataset: Dataset, ids: dict[str, int]) -> list[Annotation]:
    """Its boxes, with the ids that the source domain gives the classes."""
    if split == UNLABELLED:
        return []
    names = {c.id: c.name for c in dataset.categories}
    return [dataclasses.replace(a, category_id=ids[names[a.category_id]]) for a in dataset.annotations]
