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
from engine.evaluation.trainings import Job, plan_jobs, read_job, run_jobs, trainings_at_once
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


def affordable(seconds: float, training_seconds: float, workers: int, finished: int) -> int:
    """How many candidates the rounds can start with: of n candidates n + 2 n / 3 + 4 trainings, and one of real data
    alone for each seed.

    Args:
        seconds: that are left for trainings. training_seconds: of one. workers: trainings at a time.
        finished: trainings of real data alone that are done.

    Raises:
        ConfigError: fewer than LEAST.
    """
    fixed = 4 + len(_all_seeds()) - finished
    count = int((seconds * workers / training_seconds - fixed) * 3 / 5)
    if count < LEAST:
        least = (LEAST * 5 / 3 + fixed) * training_seconds / workers / 60
        raise ConfigError(
            f"--minutes: {seconds / 60:.1f} are left for trainings that take {training_seconds:.0f} s each, "
            f"{workers} at a time. A choice needs {least:.1f} at least; give more, or fewer detector.steps. What was "
            "drawn and trained is kept."
        )
    return count


def train_baseline(train: Dataset, val: Dataset, out: Path, settings: Settings) -> tuple[float, int]:
    """Train real data alone with the first seeds, as many as are trained at a time: a single one would have all threads
    of the machine, and those that follow will not.

    Returns:
        The seconds that one takes, with its process and its predictions, and how many are trained.
    """
    jobs = plan_jobs([_baseline(train)], _all_seeds()[: trainings_at_once(settings)], out, settings, val)
    began = time.monotonic()
    run_jobs(jobs, val, settings, lambda done, total: None)
    return max(time.monotonic() - began, *(read_job(job)["seconds"] for job in jobs)), len(jobs)


def choose(
    train: Dataset,
    val: Dataset,
    pool: Dataset,
    candidates: Sequence[Candidate],
    out: Path,
    settings: Settings,
    in_time: Callable[[], bool] = lambda: True,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Trial], int]:
    """Run the rounds, as long as there is time.

    Trainings that are on disk in `out` are not done again.

    Args:
        in_time: asked before trainings are started, as many as run at a time; once it says no, none is started, and
            what is finished decides.

    Returns:
        Every trial, the best first: those of more seeds before those of fewer. And the number of trainings of the last
        round that were left out for want of time.

    Raises:
        ConfigError: the time was over before a candidate was trained. RunFailed: a training failed.
    """
    running, seeds, finished = list(candidates), [], []
    for place, more in enumerate(ROUNDS):
        seeds += more
        arms = [_baseline(train), *(_arm(candidate, train, pool) for candidate in running)]
        jobs = plan_jobs(arms, seeds, out, settings, val)
        left_out = _run_in_time(jobs, val, settings, in_time, on_progress)
        trials = _trials(running, jobs, val)
        if not trials:
            raise ConfigError("--minutes: they were over before a candidate was trained. What was trained is kept.")
        if left_out or place == len(KEPT):
            return trials + finished, left_out
        kept = KEPT[place] if place else max(2, round(KEPT[place] * len(trials)))
        finished = trials[kept:] + finished
        running = [trial.candidate for trial in trials[:kept]]
    raise AssertionError("unreachable: the last round returns")


def _run_in_time(
    jobs: Sequence[Job],
    val: Dataset,
    settings: Settings,
    in_time: Callable[[], bool],
    on_progress: Callable[[int, int], None],
) -> int:
    """Run what is not done, as many at a time as there are workers; returns how many were left out for want of time."""
    pending = [job for job in jobs if read_job(job) is None]
    at_once = trainings_at_once(settings)
    for start in range(0, len(pending), at_once):
        on_progress(len(jobs) - len(pending) + start, len(jobs))
        if not in_time():
            return len(pending) - start
        run_jobs(pending[start : start + at_once], val, settings, lambda done, total: None)
    on_progress(len(jobs), len(jobs))
    return 0


def _trials(candidates: Sequence[Candidate], jobs: Sequence[Job], val: Dataset) -> list[Trial]:
    """The best first, all on the same seeds: those that every one of them and real data alone are finished with. A
    candidate that is not finished with the first seed is none of them."""
    results = {(job.arm.name, job.seed): read_job(job) for job in jobs}
    done = {key for key, result in results.items() if result is not None}
    tried = [c for c in candidates if (c.name, ROUNDS[0][0]) in done]
    names = [BASELINE, *(c.name for c in tried)]
    seeds = [s for s in dict.fromkeys(job.seed for job in jobs) if all((name, s) in done for name in names)]
    if not seeds:
        return []
    scores = {name: tuple(evaluate(val, results[name, s]["detections"]).map for s in seeds) for name in names}
    trials = [Trial(c, scores[c.name], scores[BASELINE]) for c in tried]
    return sorted(trials, key=lambda trial: -trial.gain)


def _all_seeds() -> list[int]:
    return [seed for seeds in ROUNDS for seed in seeds]


def _baseline(train: Dataset) -> ArmPlan:
    return ArmPlan(BASELINE, (Source(train),), 1.0, "")


def _arm(candidate: Candidate, train: Dataset, pool: Dataset) -> ArmPlan:
    part = candidate.part_of(pool)
    return ArmPlan(candidate.name, (Source(train, 1 - candidate.share), Source(part, candidate.share)), 1.0, "")


class Clock:
    """A budget in seconds, counted from its making."""

    def __init__(self, minutes: float):
        self.began, self.seconds = time.monotonic(), 60 * minutes

    @property
    def spent(self) -> float:
        """May be more than the budget."""
        return time.monotonic() - self.began

    @property
    def left(self) -> float:
        """Never below 0."""
        return max(0.0, self.seconds - self.spent)
