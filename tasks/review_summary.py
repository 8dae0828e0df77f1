"""What came of a review: its counts, and the lines that say them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from engine.curation.decisions import Decisions
from engine.curation.edits import ImageEdits
from engine.curation.verdicts import Judgement
from engine.data.dataset import Dataset


@dataclass(frozen=True)
class ReviewSummary:
    """Outcome of a review or a collection.

    Attributes:
        images: accepted + rejected.
        reasons: first reason of each rejected image -> count; adds up to `rejected`.
        reviewer: how many images a person has decided.
        dataset: name in FiftyOne; None when it was not loaded.
        skipped: why FiftyOne was left out; None when it was not.
        edited: images whose boxes a person corrected.
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
    edited: int = 0


def summarise(
    dataset: Dataset,
    decisions: Decisions,
    name: str | None,
    skipped: str | None = None,
    gates: Judgement | None = None,
    edits: Mapping[int, ImageEdits] | None = None,
) -> ReviewSummary:
    """The counts of a dataset's decisions and edits."""
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
        edited=len(edits or {}),
    )


def gate_lines(judgement: Judgement) -> list[str]:
    """What the gates found, in two lines for the terminal: the images by verdict and reason, and the batch."""
    counts, batch = judgement.counts(), judgement.batch
    parts = []
    for word, number in counts["verdicts"].items():
        reasons = ", ".join(f"{name} {count}" for name, count in counts.get(word, {}).items())
        parts.append(f"{number} {word}" + (f" ({reasons})" if reasons else ""))
    return [f"Gates: {', '.join(parts)}.", f"The batch: {batch.outcome or 'not judged'} ({batch.note})."]
