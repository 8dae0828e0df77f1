"""The steps of a night after its plan: draw, review, merge, compare, judge. Each does nothing where it is done.

They are called inside a flow, one after the other; each takes the night as it is and returns it as it is then, written.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from engine.curation.pool import merge_pool
from engine.curation.verdicts import FAIL
from engine.data.files import link_or_copy
from engine.errors import RunConflict
from engine.evaluation.promotion import Ruling, rule
from engine.generation.budget import check_disk_left
from engine.generation.source import DrawerSource
from engine.sections import LdmSettings, Settings
from tasks.curate import FiftyOneUse, review_dataset
from tasks.detector import compare_arms
from tasks.generate import draw_dataset
from tasks.night_file import PROMOTED, REJECTED, Night, Nights
from tasks.night_plan import work_of
from tasks.night_pool import record_pool
from tasks.retry import RETRIED

REAL_ALONE = ("real", "real_longer", "strong_augmentation")  # arms that no generated image changes


def draw_night(nights: Nights, night: Night, source: DrawerSource, workers: int, ray: str | None) -> Night:
    """Draw and label the planned images, with the night's number as seed.

    Raises:
        ConfigError: the disk has less free than is to be left. RunFailed and the others: see `draw_dataset`.
    """
    if night.drawn is not None:
        return night
    out = nights.folder_of(night) / "generated"
    check_disk_left(source.settings.scale_up, out)
    fresh, start = not out.exists(), time.monotonic()
    drawn_from = (source.data, source.ldm, source.adapter, out, night.plan["images"], night.number, source.settings)
    try:
        counts = draw_dataset(*drawn_from, workers, ray)
    except RunConflict as error:
        raise RunConflict(f"{error} Or remove {out}: then this night is drawn anew.") from None
    measured = _measured(out, counts, time.monotonic() - start, workers, source) if fresh and counts["kept"] else {}
    return nights.write(night, drawn={**counts, **measured})


def review_night(
    nights: Nights, night: Night, real: Path, settings: Settings, fiftyone: FiftyOneUse, ldm: LdmSettings
) -> Night:
    """Run the gates, also against the pool; once a person has looked, once more, which brings back what was decided.
    Images are compared by the features of `ldm` too, as the comparison does: what it would stop on is out before."""
    if night.review is not None and (night.review["by_person"] or not night.looked):
        return night
    if night.base and not settings.review.pool:
        settings = replace(settings, review=replace(settings.review, pool=str(nights.folder / night.base)))
    found = review_dataset(nights.folder_of(night) / "generated", real, settings, fiftyone, ldm)
    return nights.write(night, review={**found, "by_person": night.looked})


def refused_by_review(night: Night) -> str | None:
    """Why nothing of the night can join the pool, whatever a detector says; None where something can."""
    if not night.review["accepted"]:
        return f"review accepted none of {night.review['images']} images"
    if night.review["batch"] == FAIL and not night.looked:
        return "the gates say that the night's images are much more alike than real ones; see gates.json"
    return None


@task(name="merge-pool", cache_policy=NO_CACHE, **RETRIED)
def merge_night(nights: Nights, night: Night) -> Night:
    """Put what review accepted of the night behind the pool that was promoted when it began."""
    if night.pool_images is not None:
        return night
    folder = nights.folder_of(night)
    base = [nights.folder / night.base] if night.base else []
    manifest = merge_pool([*base, folder / "generated"], folder / "pool")
    return nights.write(night, pool_images=manifest["images"])


def compare_night(nights: Nights, night: Night, real: Path, settings: Settings, ldm: LdmSettings) -> Night:
    """Train on real and on real + pool. Trainings on real images alone are taken over from earlier nights where they
    are of the same data and settings. Leaks are searched by the features of `ldm` too."""
    if night.comparison is not None:
        return night
    out = nights.folder_of(night) / "comparison"
    for earlier in reversed(nights.all()):
        take_over_trainings(nights.folder_of(earlier) / "comparison", out)
    found = asdict(compare_arms(real, nights.folder_of(night) / "pool", out, settings, ldm=ldm))
    kept = {name: found[name] for name in ("mean", "low", "high")}
    return nights.write(night, comparison={**kept, "outcome": found["verdict"]})


def take_over_trainings(earlier: Path, out: Path) -> None:
    """Link the trainings of arms without generated images; the comparison checks each of them by its digest."""
    for arm in REAL_ALONE:
        for path in sorted((earlier / "arms" / arm).glob("seed-*.json")):
            link_or_copy(path, out / "arms" / arm / path.name)


def judge_night(nights: Nights, night: Night, settings: Settings) -> Night:
    """Write down what the review, else the policy of promotion says. It stands, whatever the settings say later."""
    if night.ruling is not None:
        return night
    refused = refused_by_review(night)
    if refused:
        ruling = Ruling(False, refused)
    else:
        ruling = rule(*(night.comparison[name] for name in ("mean", "low", "high")), settings.scale_up)
    return nights.write(night, ruling=PROMOTED if ruling.promoted else REJECTED, reason=ruling.reason)


def promote_night(nights: Nights, night: Night, options: Mapping, settings: Settings, dataset: str) -> Night:
    """Let a promoted night's pool be the one that is trained on, and make it a version where versions are kept.

    Raises:
        DatasetError, RunFailed: see `record_pool`; the same call then goes on.
    """
    if night.ruling != PROMOTED:
        return night
    nights.promote(night)
    version, note = record_pool(nights, night, options, settings, dataset)
    return nights.write(night, version=version, note=note)


def close_night(nights: Nights, night: Night) -> Night:
    """All that follows from the ruling is done: the night is over."""
    return nights.write(night, verdict=night.ruling, waits_for=None)


def _measured(out: Path, counts: dict, seconds: float, workers: int, source: DrawerSource) -> dict:
    """What the next night reckons with."""
    sizes = [path.stat().st_size for path in (out / "images").iterdir()]
    return {
        "seconds": seconds,
        "workers": workers,
        "work": work_of(source),
        "jpeg_bytes": sum(sizes) / max(1, len(sizes)),
        "boxes_per_image": (counts["boxes"] + counts["ignored"]) / counts["kept"],
    }
