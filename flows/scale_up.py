"""Flow `scale-up`: a night. Draw where the detector is weak, review, compare, and let in what does no harm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from prefect import flow

from engine.errors import RunFailed, UserError
from engine.generation.source import DrawerSource
from tasks import generate
from tasks.curate import FiftyOneUse
from tasks.night_file import Night, Nights
from tasks.night_plan import night_settings, plan_night
from tasks.night_report import message, report_night
from tasks.night_steps import (
    close_night,
    compare_night,
    draw_night,
    judge_night,
    merge_night,
    promote_night,
    refused_by_review,
    review_night,
)
from tasks.night_wait import suspends, wait_for_person
from tasks.settings import ldm_settings, open_settings
from tasks.version import check_name
from tasks.webhook import notify, webhook_url


@flow(name="scale-up", persist_result=False)
def scale_up(
    data: str,
    ldm: str,
    adapter: str,
    nights: str = "nights",
    comparison: str | None = None,
    workers: int = 1,
    ray: str | None = None,
    fiftyone: FiftyOneUse = "skip",
    reviewed: bool = False,
    params: str | None = None,
    overrides: list[str] | None = None,
    version: str = "pool",
) -> dict:
    """One night. A night that was cut off goes on where it was when the flow is run again.

    Args:
        data: dataset folder with train.json and test.json.
        ldm: the diffusion model's folder or hub id.
        adapter: folder of the adapter.
        nights: folder of all nights, see `tasks.night_file`.
        comparison: folder of a comparison that tells where the detector is weak, until a night has made a newer one.
        workers: worker processes that draw; with `ray`, slots on the cluster.
        ray: draw on a Ray cluster, see `generate_coco_de`.
        fiftyone: where FiftyOne cannot start, "required" fails and "skip" goes on; "off" never starts it.
        reviewed: a person has looked at the night that waits (`scale_up.auto_accept=false`).
        params: settings file; params.yaml of the current folder where none is given.
        overrides: strings section.key=value. Prefect shows them: a webhook belongs into DE_WEBHOOK.
        version: each promoted pool is tagged <version>-v<N>, where the workspace has git, DVC and the stage `pool`.

    Returns:
        {night, verdict, reason, images: accepted tonight, pool_images, version}; a night that waits has no verdict.
    """
    model, settings = open_settings(params, overrides or [], ldm)
    check_name(version)
    source = DrawerSource(Path(data), model, Path(adapter), settings, generate.LOADER)
    folder, url = Nights(Path(nights)), webhook_url(settings.scale_up.webhook)
    with folder.owned():
        night = folder.open_night()
        try:
            night = plan_night(folder, night, source, Path(comparison) if comparison else None, workers)
            night = _after_plan(folder, night, source, workers, ray, fiftyone, reviewed, url)
            if night.ruling is not None:
                given = {"data": data, "ldm": ldm, "adapter": adapter}
                night = promote_night(folder, night, given, settings, version)
                report_night(folder, night, url)
                night = close_night(folder, night)
        except (UserError, RunFailed, OSError) as error:
            notify(url, message(night, f"Night {night.number} stopped and goes on when it is run again: {error}"))
            raise
        return _outcome(night)


def _after_plan(
    nights: Nights,
    night: Night,
    source: DrawerSource,
    workers: int,
    ray: str | None,
    fiftyone: FiftyOneUse,
    reviewed: bool,
    url: str,
) -> Night:
    settings = source.settings
    decided = {name: night.plan[name] for name in ("class_weights", "size_weights", "requests") if name in night.plan}
    tonight = replace(source, settings=night_settings(settings, **decided))
    night = draw_night(nights, night, tonight, workers, ray)
    searched = ldm_settings(source.ldm, settings)
    night = review_night(nights, night, source.data, settings, fiftyone, searched)
    if not (settings.scale_up.auto_accept or night.looked):
        night = _looked_at(nights, night, reviewed, url)
        if not night.looked:
            return night
        night = review_night(nights, night, source.data, settings, fiftyone, searched)
    if not refused_by_review(night):
        night = merge_night(nights, night)
        night = compare_night(nights, night, source.data, settings, searched)
    return judge_night(nights, night, settings)


def _looked_at(nights: Nights, night: Night, reviewed: bool, url: str) -> Night:
    """The night once a person has looked; else as it is, or this run is suspended until somebody has."""
    if reviewed:
        return nights.write(night, looked=True, waits_for=None)
    first = night.waits_for is None
    if first:
        report_night(nights, night, url)
    if suspends(night):
        return wait_for_person(nights, night)
    return nights.write(night, waits_for="") if first else night


def _outcome(night: Night) -> dict:
    return {
        "night": night.number,
        "verdict": night.verdict,
        "reason": night.reason,
        "images": night.review["accepted"],
        "pool_images": night.pool_images,
        "version": night.version,
    }
