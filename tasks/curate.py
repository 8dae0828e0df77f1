"""Prefect task: the review of a generated dataset (see tasks/review.py for the review itself)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from engine.sections import LdmSettings, Settings
from tasks.retry import RETRIED

FiftyOneUse = Literal["required", "skip", "off"]


@task(name="review", cache_policy=NO_CACHE, **RETRIED)
def review_dataset(
    generated: Path,
    real: Path,
    settings: Settings,
    fiftyone: FiftyOneUse = "required",
    ldm: LdmSettings | None = None,
) -> dict:
    """Decide which images training may use, by the features of `ldm` too where it is given, and load the dataset into
    FiftyOne.

    Returns:
        images, accepted, rejected; reasons: how many images each rejects; batch: the gates' word on all images
        together, pass, borderline, fail, None for too few.
    """
    from tasks.review import review

    summary = review(Path(generated), Path(real), settings, fiftyone=fiftyone, ldm=ldm)
    row = {
        "dataset": str(generated),
        "accepted": summary.accepted,
        "rejected": summary.rejected,
        **{f"rejected: {reason}": count for reason, count in summary.reasons.items()},
        **{f"gates: {word}": count for word, count in summary.gates.counts()["verdicts"].items()},
        "batch": summary.gates.batch.outcome or "not judged",
        "FiftyOne": summary.dataset or summary.skipped or "not asked for",
    }
    create_table_artifact([row], "review", f"{summary.accepted} of {summary.images} images accepted")
    counts = {"images": summary.images, "accepted": summary.accepted, "rejected": summary.rejected}
    return {**counts, "reasons": dict(summary.reasons), "batch": summary.gates.batch.outcome}
