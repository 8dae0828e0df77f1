"""Tuning, step by step: a pool of images, what a detector of real images thinks of them, the trials."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml

from engine.adapter.adapter import read_card
from engine.config import as_dict, digest
from engine.data.dataset import Dataset, read_dataset
from engine.data.files import write_atomically
from engine.errors import DatasetError
from engine.evaluation.candidates import Candidate, faithful_ratio, fidelity, propose
from engine.evaluation.compare import check_objects
from engine.evaluation.leakage import search_val
from engine.evaluation.trainings import trainings_at_once
from engine.evaluation.tuning import Clock, Trial, affordable, choose, train_baseline
from flows.claim import claim
from flows.tune_pool import GUIDANCE_MIN, RATIOS, TuneRequest, draw_pool, pool_settings, score_thresholds
from tasks.settings import ldm_settings

SHARES = (0.1, 0.25, 0.5)
REPORT, SETTINGS, PLAN = "tune.json", "tuned.yaml", "plan.json"


def tune(request: TuneRequest, tell: Callable[[str], None], on_progress=lambda done, total: None) -> dict:
    """Draw a pool, propose, try, and write tuned.yaml and tune.json, whose content is returned.

    Raises:
        DatasetError: no val.json to choose on, or the pool is of no use. ConfigError: too little time.
        RunConflict: `out` holds a tuning of other data, model or settings.
    """
    clock = Clock(request.minutes)
    train, val = read_dataset(request.data, "train"), read_dataset(request.data, "val")
    for split in (train, val):
        check_objects(split, "tuning trains on train.json and chooses by val.json")
    _claim(request, train, val)
    pool = draw_pool(request, tell)
    leakage = _search(request, train, val, pool, tell)
    plan = _read_plan(request.out) or _propose(request, train, val, pool, clock, tell)
    candidates = _affordable(request, plan)
    tell(f"{len(candidates)} candidates, {clock.left / 60:.0f} minutes left")
    usable = [c for c in candidates if c.part_of(pool).images]
    if not usable:
        raise DatasetError(
            f"{request.out / 'pool'}: at no threshold that is worth a try does an image keep a box. The adapter is too "
            "weak (`de adapter-report`): train it longer, or on more labels."
        )

    def in_time() -> bool:
        return clock.left >= plan["training_seconds"]

    trials, left_out = choose(train, val, pool, usable, request.out, request.settings, in_time, on_progress)
    if left_out:
        tell(f"the time is over: {left_out} trainings are left out, which the same command would go on with")
    found = {"leakage": leakage, "left_out": left_out, "minutes": clock.spent / 60}
    return _write(request.out, {**plan, "candidates": [dataclasses.asdict(c) for c in candidates], **found}, trials)


def _affordable(request: TuneRequest, plan: Mapping) -> list[Candidate]:
    """As many of the plan's candidates as the minutes allow: the same for the same minutes, more for more of them."""
    left = max(0.0, 60 * request.minutes - plan["seconds_before"])
    at_once = trainings_at_once(request.settings)
    count = affordable(left, plan["training_seconds"], at_once, plan["baselines"])
    return [Candidate(**values) for values in plan["candidates"][:count]]


def _claim(request: TuneRequest, train: Dataset, val: Dataset) -> None:
    sections = {name: as_dict(request.settings)[name] for name in ("ldm", "generation", "review", "detector", "detr")}
    wanted = {
        "train": train.digest(),
        "val": val.digest(),
        "adapter": read_card(request.adapter)["weights_sha256"],
        "images": request.images,
        "seed": request.seed,
        "settings": digest(sections),
    }
    claim(request.out, wanted, "tuning")


def _search(request: TuneRequest, train: Dataset, val: Dataset, pool: Dataset, tell: Callable[[str], None]) -> dict:
    """How many images that are trained on repeat a validation image: there the scores to choose by are too good."""
    ldm = ldm_settings(request.ldm, request.settings)
    leakage = search_val({"train": train, "generated": pool}, val, request.settings.compare, ldm)
    for where, found in leakage.items():
        for what, count in found.items():
            if count:
                tell(f"{count} {where} {what}: the gains measured on val.json are too good. `de compare` will tell.")
    return leakage


def _propose(request: TuneRequest, train, val, pool: Dataset, clock: Clock, tell: Callable[[str], None]) -> dict:
    """The cheap measures, what a training takes, and all candidates in the order to try them; kept for a second run."""
    from engine.baselines.making import make_baseline
    from engine.baselines.request import BaselineRequest

    settings, score = request.settings, request.settings.generation.score_threshold
    tell("a detector of real images labels the pool")
    keeping = dataclasses.replace(settings, generation=dataclasses.replace(settings.generation, keep_negatives=True))
    folders = {"data": request.data, "generated": request.out / "pool"}
    make_baseline("detector", BaselineRequest(request.out / "detected", keeping, **folders, seed=request.seed))
    rows = fidelity(pool, read_dataset(request.out / "detected", "annotations"), score)
    if not rows:
        raise DatasetError(
            f"{request.out / 'pool'}: too few images were drawn and accepted to tell anything. Raise --images."
        )
    limit = faithful_ratio(rows)
    scores = score_thresholds(request, val)
    tell("real data alone, for the clock")
    seconds, baselines = train_baseline(train, val, request.out, settings)
    high = pool_settings(settings).generation.guidance_max
    candidates = propose(limit, RATIOS[1], list(scores.values()), (1 + (high - 1) / 2, high), SHARES, request.seed)
    plan = {
        "fidelity": rows,
        "faithful_ratio": limit,
        "thresholds": scores,
        "training_seconds": seconds,
        "baselines": baselines,
        "seconds_before": clock.spent,
        "candidates": [dataclasses.asdict(candidate) for candidate in candidates],
    }
    write_atomically(request.out / PLAN, (json.dumps(plan, indent=1) + "\n").encode())
    return plan


def _read_plan(out: Path) -> dict | None:
    try:
        plan = json.loads((out / PLAN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return plan if "seconds_before" in plan else None  # an earlier version's: made anew from what it drew and trained


def _write(out: Path, found: Mapping, trials: Sequence[Trial]) -> dict:
    best = trials[0]
    report = {
        **found,
        "trials": [
            {
                **dataclasses.asdict(trial.candidate),
                "map": list(trial.scores),
                "real": list(trial.real),
                "gain": trial.gain,
            }
            for trial in trials
        ],
    }
    write_atomically(out / REPORT, (json.dumps(report, indent=1) + "\n").encode())
    chosen = best.candidate.settings(RATIOS[0], GUIDANCE_MIN)
    head = (
        f"# Chosen on validation images: {100 * best.gain:+.1f} mAP to real data alone over {len(best.scores)} seeds,\n"
        f"# the best of {len(trials)} candidates, so expect less. `de compare` on the test split is the answer.\n"
    )
    if found["left_out"]:
        head += f"# The time was over before {found['left_out']} trainings: a choice among what was finished.\n"
    write_atomically(out / SETTINGS, (head + yaml.safe_dump(chosen, sort_keys=False)).encode())
    return report
