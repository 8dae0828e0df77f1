"""Draws validation and test images out of a dataset that has only a train split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from engine.data.dataset import Dataset, read_dataset, splits_of, subset, write_dataset
from engine.data.files import file_sha256
from engine.data.records import ImageRecord
from engine.errors import DatasetError


def split_dataset(folder: Path | str, *, val: float = 0.0, test: float = 0.0, seed: int = 0) -> dict[str, int]:
    """Move images of train.json to val.json and test.json. Pictures stay where they are.

    The order of drawing is the hash of (seed, a picture's bytes): the same pictures give the same splits whatever their
    names and order, and byte-identical pictures stay together. Each split gets its share of all images, rounded, at
    least one.

    Args:
        folder: a dataset folder with train.json, and without the splits that are to be drawn.
        val, test: shares of the images in train.json, 0 for no such split; together below 1.
        seed: another seed draws another split.

    Returns:
        The number of images of each split.

    Raises:
        DatasetError: shares out of range, a split that exists already, or too few different pictures.
    """
    folder = Path(folder)
    if not (0 <= val and 0 <= test and val + test < 1):
        raise DatasetError(f"Shares val={val} and test={test} must be at least 0 and together below 1.")
    shares = {split: share for split, share in (("test", test), ("val", val)) if share > 0}
    there = [split for split in shares if split in splits_of(folder)]
    if there:
        raise DatasetError(f"{folder} has its own {' and '.join(there)} already; draw only what is missing.")
    whole = read_dataset(folder, "train")
    groups = _groups(whole, seed)
    drawn: dict[str, list[int]] = {}
    for split, share in shares.items():
        wanted, own = max(1, round(share * len(whole.images))), []
        while len(own) < wanted and groups:
            own += [image.id for image in groups.pop()]
        drawn[split] = own
    drawn["train"] = [image.id for group in groups for image in group]
    if not all(drawn.values()):
        raise DatasetError(
            f"{folder}/train.json has {len(whole.images)} images, too few different ones for "
            f"{', '.join(drawn)}. Ask for fewer splits, or add images."
        )
    for split, ids in drawn.items():  # train last: stopped before it, no image is lost
        part = replace(subset(whole, ids), split=split)
        write_dataset(folder, split, part.images, part.annotations, part.categories)
    return {split: len(ids) for split, ids in drawn.items()}


def _groups(dataset: Dataset, seed: int) -> list[Sequence[ImageRecord]]:
    """Byte-identical pictures together, in the order of their hashes with the seed."""
    groups: dict[str, list[ImageRecord]] = {}
    for image in dataset.images:
        groups.setdefault(file_sha256(dataset.image_path(image)), []).append(image)
    return [groups[key] for key in sorted(groups, key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).hexdigest())]
