"""What a person did in the App on its way back: tags into decisions.json, edited boxes into decisions.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from engine.curation.box_diff import diff_boxes, sign
from engine.curation.decisions import Decisions, load_decisions, write_decisions
from engine.curation.edits import ImageEdits, read_edits, write_edits
from engine.curation.reviewer import merge_edits
from engine.data.dataset import Dataset, read_dataset
from engine.errors import DatasetError
from tasks import fiftyone_dataset
from tasks.fiftyone_boxes import PREDICTIONS_RAW, read_boxes
from tasks.fiftyone_connection import connected_fiftyone
from tasks.review_summary import ReviewSummary, summarise


def collect(generated: Path, reviewer: str | None = None) -> ReviewSummary:
    """Bring what a person did in the App back: tags into decisions.json, edited boxes into decisions.jsonl.

    Taking the tag away that was there, or adding the other one, turns the decision round. Tags of any other name on an
    image that a person rejected become its reason. Boxes are compared with those that were
    generated, id by id. Nothing is written to the samples, so an open App is not disturbed; collecting twice is the
    same as once. Unreadable images, unusable labels and leaks stay rejected whatever a person tags.

    Args:
        generated: folder with annotations.json.
        reviewer: who corrected the boxes that nobody collected yet, in images that are in no reviewer's queue.

    Raises:
        DatasetError: the folder cannot be used, FiftyOne does not hold it as it is now, or an edited box cannot be a
            label; nothing is written then.
        RunFailed: FiftyOne cannot start.
    """
    with connected_fiftyone() as module:
        return collect_from(module, generated, reviewer)


def collect_from(module: ModuleType, generated: Path, reviewer: str | None = None) -> ReviewSummary:
    """`collect` for a process that has FiftyOne connected already, as the App's own."""
    dataset = read_dataset(Path(generated), "annotations")
    name = fiftyone_dataset.dataset_name(dataset.folder)
    shown = fiftyone_dataset.find(module, name)
    if shown is None:
        raise DatasetError(
            f"{dataset.folder} is not loaded in FiftyOne, so nothing was decided there: de app opens it."
        )
    if not fiftyone_dataset.shows(shown, dataset.folder):
        raise DatasetError(
            f"{dataset.folder}: annotations.json changed since it was loaded into FiftyOne, and what was decided "
            "there is about other images. Review the folder again."
        )
    decisions = load_decisions(dataset.folder, dataset) or Decisions(frozenset(), {})
    decisions = merge_edits(fiftyone_dataset.read_shown(shown), decisions)
    edits = collect_boxes(dataset, shown, read_edits(dataset.folder), reviewer)
    write_decisions(dataset.folder, dataset, decisions)
    return summarise(dataset, decisions, name, edits=edits)


def collect_boxes(
    dataset: Dataset, shown, earlier: Mapping[int, ImageEdits], reviewer: str | None = None
) -> dict[int, ImageEdits]:
    """Write decisions.jsonl as the boxes in FiftyOne say."""
    if not shown.has_field(PREDICTIONS_RAW):  # loaded before boxes could be edited there
        return dict(earlier)
    found = diff_boxes(dataset, read_boxes(shown))
    owners = fiftyone_dataset.queue_owners(shown)
    edits = sign(found, earlier, {i: name for i in found if (name := owners.get(i) or reviewer)})
    write_edits(dataset.folder, edits)
    return edits
