"""What training reads of a generated dataset: the images that review accepted, with the boxes that a person left."""

from __future__ import annotations

from pathlib import Path

from engine.curation.decisions import read_decisions
from engine.curation.edits import FILE, apply_edits, read_edits
from engine.data.dataset import Dataset, read_dataset, subset
from engine.errors import DatasetError


def with_edits(folder: Path, dataset: Dataset) -> Dataset:
    """A whole generated dataset with the edits of its decisions.jsonl; itself where there are none.

    Raises:
        DatasetError: the edits are broken, or do not fit the dataset.
    """
    edits = read_edits(folder)
    unknown = sorted(set(edits) - {image.id for image in dataset.images})
    if unknown:
        raise DatasetError(
            f"{Path(folder) / FILE}: it edits {len(unknown)} images that annotations.json does not hold, the first: "
            f"{', '.join(map(str, unknown[:10]))}. Collect from the App again, or delete the file."
        )
    return apply_edits(dataset, edits)


def training_labels(folder: Path, dataset: Dataset) -> Dataset:
    """The part of a generated dataset that training uses, made of annotations.json, decisions.json and decisions.jsonl.

    Args:
        dataset: the split "annotations" of `folder`.

    Raises:
        DatasetError: as `read_decisions` and `with_edits`.
    """
    return subset(with_edits(folder, dataset), read_decisions(folder, dataset))


def accepted_images(folder: Path) -> Dataset:
    """A generated dataset with the images that review accepted (before a review: all), labelled as they were drawn: for
    whoever labels them anew.

    Raises:
        DatasetError: as `read_dataset` and `read_decisions`.
    """
    drawn = read_dataset(folder, "annotations")
    return subset(drawn, read_decisions(folder, drawn))
