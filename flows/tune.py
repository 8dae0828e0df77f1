"""Tuning, step by step: a pool of images, what a detector of real images thinks of them, the trials."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from engine.adapter.adapter import read_card
from engine.config import as_dict, digest
from engine.data.dataset import Dataset, read_dataset
from engine.data.files import write_atomically
from engine.errors import DatasetError
from engine.evaluation.candidates import Candidate, faithful_ratio, fidelity, propose
from engine.evaluation.leakage import search_val
from engine.evaluation.trainings import trainings_at_once
from engine.evaluation.tuning import Clock, Trial, affordable, choose, train_baseline
from engine.sections import Settings
from flows.claim import claim
from tasks.settings import ldm_settings

FLOOR = 0.1  # the lowest score of a box of the pool
RATIOS = (0.1, 0.8)  # encode ratios of the pool
GUIDANCE_MIN = 1.0
PRECISIONS = (0.6, 0.75, 0.9)  # of labels, on validation images; each gives a threshold to try
SHARES = (0.1, 0.25, 0.5)
REPORT, SETTINGS, PLAN = "tune.json", "tuned.yaml", "plan.json"


@dataclass(frozen=True)
class TuneRequest:
    """What is tuned: an adapter's generation for the detector of the settings, within so many minutes."""

    data: Path
    ldm: str
    adapter: Path
    out: Path
    settings: Settings
    images: int
    minutes: float
    seed: int


def tune(request: TuneRequest, tell: Callable[[str], None], on_progress=lambda done, total: None) -> dict:
    """Draw a pool, propose, try, and write tuned.yaml and tune.json, whose content is returned.

    Raises:
        DatasetError: no val.json to choose on, or the pool is of no use. ConfigError: too little time.
        RunConflict: `out` holds a tuning of other data, model or settings.
    """
    clock = Clock(request.minutes)
    train, val = read_dataset(request.data, "train"), read_dataset(request.data, "val")
    if not val.annotations:
        raise DatasetError(f"{request.data / 'val.json'} holds no box: tuning chooses by it. Set some images aside.")
    _claim(request, train, val)
    pool = _draw_pool(request, tell)
    leakage = _search(request, train, val, pool, tell)
    plan = _read_plan(request.out) or _propose(request, train, val, pool, clock, tell)
    candidates = [Candidate(**values) for values in plan["candidates"]]
    tell(f"{len(candidates)} candidates, {clock.left / 60:.0f} minutes left")
    usable = [c for c in candidates if c.part_of(pool).images]
    if not usable:
        raise DatasetError(
            f"{request.out / 'pool'}: at no threshold that is worth a try does an image keep a box. The adapter is too "
            "weak (`de adapter-report`): train it longer, or on more labels."
        )
    trials = choose(train, val, pool, usable, request.out, request.settings, on_progress)
    return _write(request, plan, trials, clock, leakage)


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


def _draw_pool(request: TuneRequest, tell: Callable[[str], None]) -> Dataset:
    """Images over wide ranges of encode ratio and guidance, with boxes of any score; what the gates reject is out."""
    from engine.curation.training_labels import training_labels
    from engine.generation.devices import usual_workers
    from engine.generation.run import generate
    from tasks.review import review

    out, settings = request.out / "pool", pool_settings(request.settings)
    tell(f"draw {request.images} images at encode ratios {RATIOS[0]} to {RATIOS[1]}")
    workers = usual_workers(settings)
    generate(request.data, request.ldm, request.adapter, out, request.images, request.seed, settings, workers)
    review(out, request.data, settings, fiftyone="off", ldm=ldm_settings(request.ldm, settings))
    drawn = read_dataset(out, "annotations")
    return training_labels(out, drawn)


def _search(request: TuneRequest, train: Dataset, val: Dataset, pool: Dataset, tell: Callable[[str], None]) -> dict:
    """How many images that are trained on repeat a validation image: there the scores to choose by are too good."""
    ldm = ldm_settings(request.ldm, request.settings)
    leakage = search_val({"train": train, "generated": pool}, val, request.settings.compare, ldm)
    for where, found in leakage.items():
        for what, count in found.items():
            if count:
                tell(f"{count} {where} {what}: the gains measured on val.json are too good. `de compare` will tell.")
    return leakage


def pool_settings(settings: Settings) -> Settings:
    """The settings, with the wide ranges of the pool."""
    generation = dataclasses.replace(
        settings.generation,
        strength_min=RATIOS[0],
        strength_max=RATIOS[1],
        guidance_min=GUIDANCE_MIN,
        guidance_max=max(2.0, 1.5 * settings.generation.guidance_max),
        thresholds="fixed",
        score_threshold=FLOOR,
        ignore_threshold=FLOOR,
        text_to_image=0.0,
        keep_negatives=False,
    )
    return dataclasses.replace(settings, generation=generation)


def _propose(request: TuneRequest, train, val, pool: Dataset, clock: Clock, tell: Callable[[str], None]) -> dict:
    """The cheap measures, and as many candidates as the time allows; kept for a second run."""
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
    scores = _thresholds(request, val)
    tell("real data alone, for the clock")
    seconds = train_baseline(train, val, request.out, settings)
    count = affordable(clock.left, seconds, trainings_at_once(settings))
    high = pool_settings(settings).generation.guidance_max
    candidates = propose(limit, RATIOS[1], list(scores.values()), (1 + (high - 1) / 2, high), SHARES, request.seed)[
        :count
    ]
    plan = {
        "fidelity": rows,
        "faithful_ratio": limit,
        "thresholds": scores,
        "training_seconds": seconds,
        "candidates": [dataclasses.asdict(candidate) for candidate in candidates],
    }
    write_atomically(request.out / PLAN, (json.dumps(plan, indent=1) + "\n").encode())
    return plan


def _thresholds(request: TuneRequest, val: Dataset) -> dict[str, float]:
    """Score thresholds by the precision that they reach on validation images; the settings' own where none does."""
    from engine.adapter.quality import predict_sources
    from engine.adapter.thresholds import choose_thresholds
    from engine.generation.draw import load_drawer

    settings = pool_settings(request.settings)
    settings = dataclasses.replace(settings, generation=dataclasses.replace(settings.generation, min_adapter_map=0.0))
    drawer = load_drawer(request.data, request.ldm, request.adapter, settings, "val")
    detections = predict_sources(drawer, settings)
    found = {}
    for precision in PRECISIONS:
        score = choose_thresholds(val, detections, precision, settings.generation.suppress_iou)["pooled"]["score"]
        if score is not None and round(score, 2) not in found.values():
            found[f"precision {precision:g}"] = max(2 * FLOOR, round(score, 2))
    return found or {"settings": request.settings.generation.score_threshold}


def _read_plan(out: Path) -> dict | None:
    try:
        return json.loads((out / PLAN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _write(request: TuneRequest, plan: dict, trials: Sequence[Trial], clock: Clock, leakage: dict) -> dict:
    best = trials[0]
    report = {
        **plan,
        "trials": [
            {
                **dataclasses.asdict(trial.candidate),
                "map": list(trial.scores),
                "real": list(trial.real),
                "gain": trial.gain,
            }
            for trial in trials
        ],
        "minutes": request.minutes - clock.left / 60,
        "leakage": leakage,
    }
    write_atomically(request.out / REPORT, (json.dumps(report, indent=1) + "\n").encode())
    chosen = best.candidate.settings(RATIOS[0], GUIDANCE_MIN)
    head = (
        f"# Chosen on validation images: {100 * best.gain:+.1f} mAP to real data alone over {len(best.scores)} seeds,\n"
        f"# the best of {len(trials)} candidates, so expect less. `de compare` on the test split is the answer.\n"
    )
    write_atomically(request.out / SETTINGS, (head + yaml.safe_dump(chosen, sort_keys=False)).encode())
    return report
