"""Review of a generated dataset: gates, decisions.json, and the FiftyOne dataset in which a person looks and decides.

The files are the truth. FiftyOne shows them; what a person tags there comes back by `collect`.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.config import LdmSettings, Settings
from engine.curation.decisions import FILE, Decisions, load_decisions, write_decisions
from engine.curation.gates import Embed, judge
from engine.curation.gates_file import write_gates
from engine.curation.reviewer import decide, merge_edits
from engine.curation.verdicts import Judgement
from engine.data.dataset import Dataset, read_dataset, splits_of
from engine.data.sources import TRAIN, has_unlabelled, read_sources
from engine.errors import DatasetError, RunFailed
from tasks import fiftyone_dataset
from tasks.fiftyone_connection import connected_fiftyone

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReviewSummary:
    """Outcome of a review or a collection.

    Attributes:
        images: accepted + rejected.
        reasons: first reason of each rejected image -> count; adds up to `rejected`.
        reviewer: how many images a person has decided.
        dataset: name in FiftyOne; None when it was not loaded.
        skipped: why FiftyOne was left out; None when it was not.
        gates: what the gates found, a person's word apart; None where that is not known.
    """

    images: int
    accepted: int
    rejected: int
    reasons: dict[str, int]
    reviewer: int
    dataset: str | None
    skipped: str | None = None
    gates: Judgement | None = None


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
        settings: `review` holds the thresholds.
        fiftyone: where FiftyOne cannot start, "required" fails and "skip" logs it and goes on; "off" never starts it.
        ldm: a diffusion model whose features the gates compare images by, beside their hashes.

    Raises:
        DatasetError: either folder cannot be used.
        ModelError: the diffusion model cannot be loaded.
        RunFailed: FiftyOne cannot start and is required.
    """
    dataset, splits = read_dataset(Path(generated), "annotations"), read_splits(Path(real))
    embed, identity = (None, None) if ldm is None else features_of(ldm)
    judgement = judge(dataset, splits, settings.review, embed)
    verdicts = judgement.verdicts
    write_gates(dataset.folder, judgement, settings.review, identity)
    decisions = decide(verdicts, _earlier(dataset))
    write_decisions(dataset.folder, dataset, decisions)
    if fiftyone == "off":
        return summarise(dataset, decisions, None, gates=judgement)
    try:
        with connected_fiftyone() as module:
            shown = fiftyone_dataset.find(module, fiftyone_dataset.dataset_name(dataset.folder))
            if shown is not None and fiftyone_dataset.shows(shown, dataset.folder):
                # Edits in the App that nobody collected yet would be lost with the dataset that holds them.
                decisions = decide(verdicts, merge_edits(fiftyone_dataset.read_shown(shown), decisions))
                write_decisions(dataset.folder, dataset, decisions)
            name = fiftyone_dataset.load(module, dataset, splits, verdicts, decisions)
    except RunFailed as error:
        if fiftyone == "required":
            raise
        log.warning("SKIPPED: the dataset was not loaded into FiftyOne. %s", error)
        return summarise(dataset, decisions, None, skipped=str(error), gates=judgement)
    return summarise(dataset, decisions, name, gates=judgement)


def collect(generated: Path) -> ReviewSummary:
    """Bring the accepted and rejected tags that a person edited in the App back into decisions.json.

    Taking the tag away that was there, or adding the other one, turns the decision round. Tags of any other name on an
    image that a person rejected become its reason. Nothing is written to the samples, so an open App is not disturbed;
    collecting twice is the same as once. Unreadable images, unusable labels and leaks stay rejected whatever a person
    tags.

    Raises:
        DatasetError: the folder cannot be used, or FiftyOne does not hold it as it is now.
        RunFailed: FiftyOne cannot start.
    """
    dataset = read_dataset(Path(generated), "annotations")
    with connected_fiftyone() as module:
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
        rows = fiftyone_dataset.read_shown(shown)
    decisions = merge_edits(rows, load_decisions(dataset.folder, dataset) or Decisions(frozenset(), {}))
    write_decisions(dataset.folder, dataset, decisions)
    return summarise(dataset, decisions, name)


def summarise(
    dataset: Dataset,
    decisions: Decisions,
    name: str | None,
    skipped: str | None = None,
    gates: Judgement | None = None,
) -> ReviewSummary:
    """The counts of a dataset's decisions."""
    reasons = Counter(reason.partition(":")[0] for reason in decisions.rejected.values())
    return ReviewSummary(
        images=len(dataset.images),
        accepted=len(decisions.accepted),
        rejected=len(decisions.rejected),
        reasons=dict(sorted(reasons.items())),
        reviewer=len(decisions.reviewer),
        dataset=name,
        skipped=skipped,
        gates=gates,
    )


def gate_lines(judgement: Judgement) -> list[str]:
    """What the gates found, in two lines for the terminal: the images by verdict and reason, and the batch."""
    counts, batch = judgement.counts(), judgement.batch
    parts = []
    for word, number in counts["verdicts"].items():
        reasons = ", ".join(f"{name} {count}" for name, count in counts.get(word, {}).items())
        parts.append(f"{number} {word}" + (f" ({reasons})" if reasons else ""))
    return [f"Gates: {', '.join(parts)}.", f"The batch: {batch.outcome or 'not judged'} ({batch.note})."]


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


def _earlier(dataset: Dataset) -> Decisions | None:
    """The decisions that lie there; those that no longer fit are set aside, not lost."""
    try:
        return load_decisions(dataset.folder, dataset)
    except DatasetError as error:
        aside = dataset.folder / "decisions.previous.json"
        os.replace(dataset.folder / FILE, aside)
        log.warning("Earlier decisions do not fit and were moved to %s. %s", aside, error)
        return None
