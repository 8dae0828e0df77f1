"""A user's dataset becomes the `data/real` of a new workspace: copied where it is a dataset folder, else imported."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from engine.data.convert import REPORT_NAME, import_dataset
from engine.data.dataset import Dataset, read_dataset, splits_of
from engine.data.import_formats import READERS
from engine.data.sources import TRAIN, UNLABELLED, has_unlabelled
from engine.data.splitting import split_dataset
from engine.data.validate import validate_dataset
from engine.errors import DatasetError
from tasks.importers import import_with_fiftyone

VAL_SHARE, TEST_SHARE = 0.1, 0.2  # of the training images, where a dataset has no such split
AUTO = "auto"


def bring_in(
    source: Path,
    out: Path,
    called: Path,
    format: str = AUTO,
    val: float | None = None,
    test: float | None = None,
    seed: int = 0,
) -> tuple[Dataset, str]:
    """Fill the dataset folder `out`. The source is only read.

    Args:
        source: a dataset folder, or anything that an import takes.
        out: the folder to make.
        called: its name in what people read, for it may be moved there later.
        format: as for `de import`; "auto" also knows a dataset folder.
        val, test: shares of the training images to set aside; None sets VAL_SHARE and TEST_SHARE aside where the
            source has no such split.
        seed: of that drawing.

    Returns:
        Its train split, and in words what was done.

    Raises:
        DatasetError: the source cannot be used, or a comparison could not be made on it: no train split, no boxes, no
            test split.
    """
    if format == AUTO and is_dataset_folder(source):
        said = [_copy(source, out, called)]
    elif format == AUTO or format in READERS:
        said = [dataclasses.replace(import_dataset(source, out, format), out=called).text()]
    else:
        said = [dataclasses.replace(import_with_fiftyone(source, out, format), out=called).text()]
    if TRAIN not in splits_of(out):
        raise DatasetError(f"{source} has no training images: no split of it is called train. Name one so.")
    shares = {"val": (val, VAL_SHARE), "test": (test, TEST_SHARE)}
    drawn = {name: (usual if asked is None else asked) for name, (asked, usual) in shares.items()}
    there = splits_of(out)
    drawn = {name: share for name, share in drawn.items() if shares[name][0] is not None or name not in there}
    if any(drawn.values()):
        sizes = split_dataset(out, **drawn, seed=seed)
        said.append("Set aside, since the source has none: " + ", ".join(f"{n} {sizes[n]}" for n in drawn) + " images.")
    train = read_dataset(out, TRAIN)
    if not train.annotations:
        raise DatasetError(f"{source} has no boxes on its training images: there is nothing to learn from.")
    if "test" not in splits_of(out):
        raise DatasetError(f"{source} has no test images, and --test 0 sets none aside: nothing could be compared.")
    return train, "\n".join(said)


def is_dataset_folder(folder: Path) -> bool:
    """Whether a folder is one already, with nothing to import: its splits can be read, and train is among them."""
    if TRAIN not in splits_of(folder) or not (folder / "images").is_dir():
        return False
    try:
        for split in splits_of(folder):
            read_dataset(folder, split)
    except DatasetError:  # a COCO export laid out alike, say: the import puts right what it can, and says what
        return False
    return True


def _copy(source: Path, out: Path, called: Path) -> str:
    """Copy what the splits name, and nothing else that lies in the folder."""
    faults = [finding for finding in validate_dataset(source) if finding.severity == "error"]
    if faults:
        listed = "\n".join(f"  {finding}" for finding in faults[:10])
        raise DatasetError(f"{source} cannot be used as it is, with {len(faults)} errors (`de validate`):\n{listed}")
    splits = [split for split in splits_of(source) if split != "annotations"]
    datasets = [read_dataset(source, s) for s in [*splits, *([UNLABELLED] if has_unlabelled(source) else [])]]
    counts = []
    for dataset in datasets:
        for image in dataset.images:
            target = out / "images" / image.file_name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(dataset.image_path(image), target)
        shutil.copyfile(source / f"{dataset.split}.json", out / f"{dataset.split}.json")
        counts.append(f"  {dataset.split}: {len(dataset.images)} images, {len(dataset.annotations)} boxes")
    if (source / REPORT_NAME).is_file():
        shutil.copyfile(source / REPORT_NAME, out / REPORT_NAME)
    return "\n".join([f"Copied the dataset {source} to {called}:", *counts])
