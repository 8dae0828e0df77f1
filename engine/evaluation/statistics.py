"""A difference between two arms with an interval that covers both what varies: the training seed and the test images.

A bootstrap that resamples three seeds understates their spread (by a third in variance, and it has no heavy tails), so
seeds and images are treated each by the method that fits and then joined. With D the mean over n paired seeds of
(treatment - baseline), s the standard deviation of the n differences, and V the variance of D when the test images are
drawn anew (paired bootstrap: both arms and all seeds see the same resample):

    D +- sqrt( t(0.975, n - 1)^2 * s^2 / n  +  1.96^2 * V )

This is the rule of Zou and Donner (Statistics in Medicine 27, 2008: recovery of variance estimates) for the sum of two
independent quantities, each with its own interval: Student's t over seeds, a normal bootstrap over images. Noise that
belongs to a seed and an image together is counted in both parts, so the interval errs to the wide side.

What more seeds would do to V is told by the seeds one by one: noise that all of them share stays, noise of a seed and
an image together shrinks with their number. Of n seeds V = shared + single / n; of one alone it is shared + single.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache

import numpy as np

from engine.errors import ConfigError

NORMAL_975 = 1.959963984540054
MOST_SEEDS = 1000  # beyond this no number of seeds is promised


@dataclass(frozen=True)
class Spread:
    """Mean, sample standard deviation (None for one value), lowest and highest of some values."""

    mean: float
    sd: float | None
    min: float
    max: float


@dataclass(frozen=True)
class Difference:
    """Treatment minus baseline, in the unit of the metric (0 to 1).

    per_seed: the n paired differences. ci95: see the module. verdict: helps, hurts or cannot tell.
    seed_error, image_error: standard errors of the mean from seeds and from test images. lasting_error: the part of
    image_error that more seeds would leave.
    seeds_to_settle: trainings per arm from which the interval would exclude zero if mean and spread stay as measured;
    None where 1000 would not.
    """

    mean: float
    ci95: tuple[float, float]
    verdict: str
    per_seed: tuple[float, ...]
    seed_error: float
    image_error: float
    lasting_error: float
    seeds_to_settle: int | None
    resamples: int

    def as_dict(self) -> dict:
        """Plain lists and numbers for json."""
        return {**asdict(self), "ci95": list(self.ci95), "per_seed": list(self.per_seed)}


def in_points(mean: float, ci95: Sequence[float]) -> str:
    """A difference and its interval, both 0 to 1, in points: '+2.4 (+1.2 to +3.5)'."""
    low, high = ci95
    return f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def spread(values: Sequence[float]) -> Spread:
    """Of at least one finite value; raises ValueError otherwise."""
    array = np.asarray(values, dtype=float)
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"the spread of {list(values)!r} is undefined: at least one number is needed, and finite ones")
    sd = float(array.std(ddof=1)) if array.size > 1 else None
    return Spread(float(array.mean()), sd, float(array.min()), float(array.max()))


def draw_counts(images: int, resamples: int, seed: int) -> np.ndarray:
    """(R, M) how often each image is drawn when M images are drawn with replacement, R times."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(images, np.full(images, 1 / images), size=resamples).astype(float)


def combine(per_seed: Sequence[float], resampled: np.ndarray | None) -> Difference:
    """The interval from n paired differences and their bootstrap values (n, R) over R resamples of the test images."""
    seeds = len(per_seed)
    if seeds < 2:
        raise ConfigError(f"an interval needs at least 2 seeds per arm, got {seeds}: raise compare.seeds")
    mean = float(np.mean(per_seed))
    seed_sd = float(np.std(per_seed, ddof=1))
    used = 0 if resampled is None else resampled.shape[1]
    shared, single = _image_variances(resampled) if used > 1 else (0.0, 0.0)
    image_error = math.sqrt(shared + single / seeds)
    half = _half_width(seed_sd, image_error, seeds)
    low, high = mean - half, mean + half
    return Difference(
        mean=mean,
        ci95=(low, high),
        verdict=verdict(low, high),
        per_seed=tuple(float(value) for value in per_seed),
        seed_error=seed_sd / math.sqrt(seeds),
        image_error=image_error,
        lasting_error=math.sqrt(shared),
        seeds_to_settle=_seeds_to_settle(mean, seed_sd, shared, single),
        resamples=used,
    )


def _image_variances(resampled: np.ndarray) -> tuple[float, float]:
    """Of values (n, R): the variance over resamples that all n share, and what each has beside it. The variance of the
    mean is exactly shared + single / n."""
    seeds = len(resampled)
    of_mean = float(np.var(resampled.mean(axis=0), ddof=1))
    of_one = float(np.mean(np.var(resampled, axis=1, ddof=1)))
    single = min(max(0.0, (of_one - of_mean) * seeds / (seeds - 1)), of_mean * seeds)
    return max(0.0, of_mean - single / seeds), single


def verdict(low: float, high: float) -> str:
    """In words: an interval above zero helps, below zero hurts, and one that holds zero cannot tell."""
    return "helps" if low > 0 else "hurts" if high < 0 else "cannot tell"


@cache
def student_975(dof: int) -> float:
    """The 97.5 % point of Student's t for a whole number of degrees of freedom, by bisection of its closed-form
    distribution (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    if dof < 1:
        raise ValueError(f"Student's t needs at least 1 degree of freedom, got {dof}")
    low, high = 1.0, 13.0  # 12.71 at one degree of freedom, 1.96 at infinity
    for _ in range(60):
        middle = (low + high) / 2
        if _student_between(middle, dof) < 0.95:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _student_between(t: float, dof: int) -> float:
    """P(-t < T < t)."""
    angle = math.atan(t / math.sqrt(dof))
    cosine = math.cos(angle)
    odd = dof % 2
    term = cosine if odd else 1.0
    total = term if dof > 1 else 0.0
    for k in range(2 + odd, dof - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def _half_width(seed_sd: float, image_error: float, seeds: int) -> float:
    return math.hypot(student_975(seeds - 1) * seed_sd / math.sqrt(seeds), NORMAL_975 * image_error)


def _seeds_to_settle(mean: float, seed_sd: float, shared: float, single: float) -> int | None:
    def settled(seeds: int) -> bool:
        return _half_width(seed_sd, math.sqrt(shared + single / seeds), seeds) < abs(mean)

    candidates = range(2, MOST_SEEDS + 1)  # the interval narrows with every seed, so halving finds the first
    place = bisect_left(candidates, True, key=settled)
    return candidates[place] if place < len(candidates) else None
