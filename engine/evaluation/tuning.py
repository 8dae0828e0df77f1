"""Which settings of generation help a detector most, found on validation images within a stated time.

Successive halving (Jamieson and Talwalkar 2016): many candidates are trained with one seed, the best third with two
more, the best two with another two, always beside real data alone with the same seeds. No test split is read here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.data.dataset import Dataset
from engine.detection.samples import Source
from engine.errors import ConfigError
from engine.evaluation.arms import BASELINE, ArmPlan
from engine.evaluation.candidates import Candidate
from engine.evaluation.coco_map import evaluate
from engine.evaluation.trainings import plan_jobs, read_job, run_jobs
from engine.sections import Settings

ROUNDS = ((0,), (1, 2), (3, 4))  # seeds of each
KEPT = (1 / 3, 2)  # after the first round a third, after the second two
LEAST = 3  # candidates worth a choice


@dataclass(frozen=True)
class Trial:
    """A candidate's scores (mAP on validation images, 0 to 1), one a seed, and real data's with the same seeds."""

    candidate: Candidate
    scores: tuple[float, ...]
    real: tuple[float, ...]

    @property
    def gain(self) -> float:
        """Mean difference to real data alone."""
        return float(np.mean(np.subtract(self.scores, self.real)))


def affordable(seconds: float, training_seconds: float, workers: int) -> int:
    """How many candidates the rounds can start with: of n candidates n + 2 n / 3 + 4 trainings, and 4 more of real data
    alone, whose first seed is trained already.

    Raises:
        ConfigError: fewer than LEAST.
    """
    trainings = seconds * workers / training_seconds
    count = int((trainings - 8) * 3 / 5)
    if count < LEAST:
        least = (LEAST * 5 / 3 + 8) * training_seconds / workers / 60
        raise ConfigError(
            f"--minutes: {seconds / 60:.1f} are left for trainings that take {training_seconds:.0f} s each, "
            f"{workers} at a time. A choice needs {least:.1f} at least; give more, or fewer detector.steps. What was "
            "drawn and trained is kept."
        )
    return count


def train_baseline(train: Dataset, val: Dataset, out: Path, settings: Settings) -> float:
    """Train real data alone with the first seed; returns its seconds."""
    jobs = plan_jobs([_baseline(train)], ROUNDS[0], out, settings, val)
    run_jobs(jobs, val, settings, lambda done, total: None)
    return read_job(jobs[0])["seconds"]


def choose(
    train: Dataset,
    val: Dataset,
    pool: Dataset,
    candidates: Sequence[Candidate],
    out: Path,
    settings: Settings,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Trial]:
    """Run the rounds; returns every trial, the best first: those of more seeds before those of fewer.

    Trainings that are on disk in `out` are not done again. Raises RunFailed: a training failed.
    """
    running, seeds, finished = list(candidates), [], []
    for place, more in enumerate(ROUNDS):
        seeds += more
        arms = [_baseline(train), *(_arm(candidate, train, pool) for candidate in running)]
        jobs = plan_jobs(arms, seeds, out, settings, val)
        run_jobs(jobs, val, settings, on_progress)
        scores: dict[str, list[float]] = {arm.name: [] for arm in arms}
        for job in jobs:
            scores[job.arm.name].append(evaluate(val, read_job(job)["detections"]).map)
        trials = [Trial(c, tuple(scores[c.name]), tuple(scores[BASELINE])) for c in running]
        trials.sort(key=lambda trial: -trial.gain)
        if place == len(KEPT):
            return trials + finished
        kept = KEPT[place] if place else max(2, round(KEPT[place] * len(trials)))
        finished = trials[kept:] + finished
        running = [trial.candidate for trial in trials[:kept]]
    raise AssertionError("unreachable: the last round returns")


def _baseline(train: Dataset) -> ArmPlan:
    return ArmPlan(BASELINE, (Source(train),), 1.0, "")


def _arm(candidate: Candidate, train: Dataset, pool: Dataset) -> ArmPlan:
    part = candidate.part_of(pool)
    return ArmPlan(candidate.name, (Source(train, 1 - candidate.share), Source(part, candidate.share)), 1.0, "")


class Clock:
    """Seconds left of a budget, counted from its making."""

    def __init__(self, minutes: float):
        self.until = time.monotonic() + 60 * minutes

    @property
    def left(self) -> float:
        """Never below 0."""
        return max(0.0, self.until - time.monotonic())
