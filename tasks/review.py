"""Review of a generated dataset: gates, decisions.json, and the FiftyOne dataset in which a person looks and decides.

The files are the truth. FiftyOne shows them; what a person does there comes back by `tasks.collect`.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Literal

import numpy as np

from engine.curation.decisions import FILE, Decisions, load_decisions, write_decisions
from engine.curation.edits import FILE as EDITS
from engine.curation.edits import ImageEdits, read_edits
from engine.curation.gates import Embed, judge
from engine.curation.gates_file import write_gates
from engine.curation.image_text import load_image_text
from engine.curation.reviewer import decide, merge_edits
from engine.curation.training_labels import with_edits
from engine.data.dataset import Dataset, read_dataset, splits_of
from engine.data.sources import TRAIN, has_unlabelled, read_sources
from engine.errors import ConfigError, DatasetError, RunFailed
from engine.ldm.device import choose_device
from engine.sections import LdmSettings, Settings
from tasks import fiftyone_dataset
from tasks.app_queues import dataset_to_itself
from tasks.collect import collect_boxes
from tasks.fiftyone_connection import connected_fiftyone
from tasks.review_summary import ReviewSummary, summarise

log = logging.getLogger(__name__)


def review(
    generated: Path,
    real: Path,
    settings: Settings,
    fiftyone: Literal["required", "skip", "off"] = "required",
    ldm: LdmSettings | None = None,
) -> ReviewSummary:
    """Run the gates, write gates.json and decisions.json, load the dataset into FiftyOne.

    What a person decided before about the same annotations.json stays, edits in the App included. The files are
    written before FiftyOne is touched: a database that does not start costs no decision.

    Args:
        generated: folder with annotations.json.
        real: the dataset folder that it was generated from.
        settings: `review` holds the thresholds, and may name an image-text encoder.
        fiftyone: where FiftyOne cannot start, "required" fails and "skip" logs it and goes on; "off" never starts it.
        ldm: a diffusion model whose features the gates compare images by, beside their hashes.

    Raises:
        DatasetError: either folder cannot be used.
        ConfigError: the dataset is open in the App, and FiftyOne is required; nothing is written then.
        ModelError: the diffusion model or the encoder cannot be loaded.
        RunFailed: FiftyOne cannot start and is required.
    """
    dataset, splits = read_dataset(Path(generated), "annotations"), read_splits(Path(real))
    name = fiftyone_dataset.dataset_name(dataset.folder)
    if fiftyone == "required":
        with dataset_to_itself(name):
            pass  # say so before the gates have run
    embed, identity = (None, None) if ldm is None else features_of(ldm)
    encoder = None
    if settings.review.encoder:
        encoder = load_image_text(settings.review, choose_device(settings.ldm.device))
    features: dict[int, np.ndarray] = {}
    remembering = None if embed is None else _remembering(embed, features)
    judgement = judge(dataset, splits, settings.review, remembering, encoder, settings.generation)
    verdicts = judgement.verdicts
    write_gates(dataset.folder, judgement, settings.review, identity, encoder and encoder.identity)
    decisions, edits = decide(verdicts, _earlier(dataset)), _earlier_edits(dataset)
    write_decisions(dataset.folder, dataset, decisions)
    if fiftyone == "off":
        return summarise(dataset, decisions, None, gates=judgement, edits=edits)
    try:
        with connected_fiftyone() as module, dataset_to_itself(name):
            shown = fiftyone_dataset.find(module, name)
            if shown is not None and fiftyone_dataset.shows(shown, dataset.folder):
                # Edits in the App that nobody collected yet would be lost with the dataset that holds them.
                edits = collect_boxes(dataset, shown, edits)
                decisions = decide(verdicts, merge_edits(fiftyone_dataset.read_shown(shown), decisions))
                write_decisions(dataset.folder, dataset, decisions)
            fiftyone_dataset.load(module, dataset, splits, verdicts, decisions, edits, features or None)
    except (RunFailed, ConfigError) as error:
        if fiftyone == "required":
            raise
        log.warning("SKIPPED: the dataset was not loaded into FiftyOne. %s", error)
        return summarise(dataset, decisions, None, skipped=str(error), gates=judgement, edits=edits)
    return summarise(dataset, decisions, name, gates=judgement, edits=edits)


def read_splits(folder: Path) -> dict[str, Dataset]:
    """Every split of a real dataset folder.

    Raises:
        DatasetError: no split, or one that cannot be read.
    """
    splits = {split: read_dataset(folder, split) for split in splits_of(folder)}
    if TRAIN in splits and has_unlabelled(folder):  # generated images may come from there as well
        splits[TRAIN] = read_sources(folder, unlabelled=True)
    return splits


def features_of(ldm: LdmSettings) -> tuple[Embed, dict]:
    """What embeds a dataset by a diffusion model, and the model's identity."""
    from engine.data.pixels import Frame
    from engine.evaluation.leakage import embed
    from engine.ldm.diffusion import load_ldm

    model = load_ldm(ldm.id, ldm.revision, ldm.dtype, ldm.device)
    frame = Frame(ldm.resolution, model.alignment)
    identity = {**model.identity.as_dict(), "resolution": ldm.resolution}
    return lambda dataset: embed(dataset, model, frame, dataset.split).numpy(), identity


def _remembering(embed: Embed, features: dict[int, np.ndarray]) -> Embed:
    """`embed`, which leaves the features of the generated images in `features`, by image id: they take long."""

    def remembered(dataset: Dataset) -> np.ndarray:
        rows = embed(dataset)
        if dataset.split == "annotations":
            features.update((image.id, row) for image, row in zip(dataset.images, rows, strict=True))
        return rows

    return remembered


def _earlier(dataset: Dataset) -> Decisions | None:
    """The decisions that lie there; those that no longer fit are set aside, not lost."""
    try:
        return load_decisions(dataset.folder, dataset)
    except DatasetError as error:
        _set_aside(dataset.folder / FILE, error)
        return None


def _earlier_edits(dataset: Dataset) -> dict[int, ImageEdits]:
    """The edited boxes that lie there; those that no longer fit are set aside, not lost."""
    try:
        with_edits(dataset.folder, dataset)
        return read_edits(dataset.folder)
    except DatasetError as error:
        _set_aside(dataset.folder / EDITS, error)
        return {}


def _set_aside(path: Path, error: DatasetError) -> None:
    aside = path.with_name(f"{path.stem}.previous{path.suffix}")
    os.replace(path, aside)
    log.warning("What a person decided earlier does not fit and was moved to %s. %s", aside, error)
