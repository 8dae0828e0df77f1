"""Prefect task: what a night draws. More of what the detector is weak in, and as much as the budget holds.

The plan is written before anything is drawn and fixed for the night: a comparison that is made meanwhile, or a disk
that fills, changes no image of a night that goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from engine.config import as_dict, digest
from engine.curation.requests import FILE, merge_requests
from engine.data.dataset import Dataset
from engine.data.sources import read_sources
from engine.generation.budget import Measured, allowed_images, measure
from engine.generation.disk import ImageSize
from engine.generation.source import DrawerSource
from engine.generation.weakness import has_validation
from engine.generation.wishes import class_weights, size_weights, sizes_as_words, weights_as_words
from engine.sections import Settings
from tasks.night_file import Night, Nights
from tasks.retry import RETRIED

log = logging.getLogger(__name__)
RESULTS = "results.json"


@task(name="plan-night", cache_policy=NO_CACHE, **RETRIED)
def plan_night(nights: Nights, night: Night, source: DrawerSource, comparison: Path | None, workers: int) -> Night:
    """Decide the night's weights and number of images, unless that is decided.

    Args:
        source: what draws, with the settings as they were given.
        comparison: folder of a comparison beside those of the nights; it need not be there.
        workers: that draw at once.

    Raises:
        ConfigError: the budget holds no image: says whether time or disk is short.
        DatasetError, ModelError, RunFailed: see `engine.generation.budget.measure` and `wishes.class_weights`.
    """
    if night.plan is not None:
        return night
    dataset = read_sources(source.data, source.settings.generation.unlabelled)
    weak_in = weak_results(nights, comparison)
    asked = gather_requests(nights, night, source.settings)
    weights = weights_of(dataset, source.settings, weak_in)
    tonight = replace(source, settings=night_settings(source.settings, **weights, requests=asked))
    wanted, work = tonight.settings.scale_up, work_of(tonight)
    found = measured_before(nights.all(), work)
    measured = found or measure(tonight, wanted.images_max, night.number)
    allowed = allowed_images(wanted, measured, workers, nights.folder)
    plan = {
        "images": allowed.images,
        "limited_by": allowed.limited_by,
        **weights,
        "weak_in": None if weak_in is None else str(weak_in),
        "requests": asked,
        "seconds_per_image": measured.seconds_per_image,
        "measured": "last night" if found else "calibration",
    }
    return nights.write(night, base=nights.promoted(), plan=plan)


def weak_results(nights: Nights, comparison: Path | None) -> Path | None:
    """The last results.json, where it can tell what the detector is weak in: by validation scores. Without them the
    night goes on and draws all classes and sizes alike, and says so: nobody gave this file by name, the next comparison
    may hold what is missing, and a night that stops draws nothing.

    Raises:
        DatasetError: the file is not usable.
    """
    path = last_results(nights, comparison)
    if path is None or has_validation(path):
        return path
    log.warning(
        "%s holds no validation scores, and test scores do not decide what is drawn: tonight no class or size is drawn "
        "more for being weak. Nights after a comparison on a dataset with val.json (de import --val) do so again.",
        path,
    )
    return None


def last_results(nights: Nights, comparison: Path | None) -> Path | None:
    """The results.json that was written last, of the nights and of `comparison`; None where there is none yet."""
    folders = [nights.folder_of(night) / "comparison" for night in nights.all()]
    paths = [folder / RESULTS for folder in [*folders, *([comparison] if comparison else [])]]
    return max((path for path in paths if path.is_file()), key=lambda path: path.stat().st_mtime_ns, default=None)


def gather_requests(nights: Nights, night: Night, settings: Settings) -> str:
    """Path of what reviewers asked for, in the settings' file and in the App on images of earlier nights, written down
    for this night; "" where nobody asked for anything.

    Raises:
        DatasetError: a file of requests is broken.
    """
    given = [Path(settings.generation.requests)] if settings.generation.requests else []
    asked = [path for n in nights.all() if (path := nights.folder_of(n) / "generated" / FILE).is_file()]
    if not (given or asked):
        return ""
    path = nights.folder_of(night) / FILE
    merge_requests([*given, *asked], path)
    return str(path)


def weights_of(dataset: Dataset, settings: Settings, weak_in: Path | None) -> dict[str, list[str]]:
    """{class_weights: [CLASS=WEIGHT], size_weights: [SIZE=WEIGHT]} of all whose weight is not 1: what the settings say,
    times how weak `weak_in` finds them.

    Raises:
        ConfigError, DatasetError: see `class_weights` and `size_weights`.
    """
    generation = settings.generation
    if weak_in is not None:
        results = str(weak_in)
        weak = {"weak_classes": generation.weak_classes or results, "weak_sizes": generation.weak_sizes or results}
        generation = replace(generation, **weak)
    return {
        "class_weights": weights_as_words(dataset, class_weights(dataset, generation)),
        "size_weights": sizes_as_words(size_weights(generation)),
    }


def night_settings(
    settings: Settings, class_weights: Iterable[str], size_weights: Iterable[str] = (), requests: str = ""
) -> Settings:
    """The settings that a night draws with: its weights as plain words, and as many images as its plan says."""
    weights = {"class_weights": tuple(class_weights), "size_weights": tuple(size_weights)}
    derived = {"balance": "none", "weak_classes": "", "weak_sizes": ""}
    generation = replace(settings.generation, **weights, **derived, requests=requests, variants_per_image=0)
    return replace(settings, generation=generation)


def work_of(source: DrawerSource) -> str:
    """A digest of what the time of an image depends on."""
    generation = replace(source.settings.generation, class_weights=(), size_weights=(), requests="")
    return digest([as_dict(generation), as_dict(source.settings.ldm), source.ldm, str(source.adapter)])


def measured_before(nights: Iterable[Night], work: str) -> Measured | None:
    """What images of the same work took in the last night that drew such ones without a break."""
    for night in reversed(list(nights)):
        drawn = night.drawn or {}
        if drawn.get("work") == work and drawn.get("kept"):
            seconds = drawn["seconds"] * drawn["workers"] / drawn["planned"]
            return Measured(seconds, ImageSize(drawn["jpeg_bytes"], drawn["boxes_per_image"]))
    return None
