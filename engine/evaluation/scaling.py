"""How the score grows with the number of generated images, and where more of them stops paying."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import curve_fit

from engine.data.dataset import Dataset, subset

_LEAST_POINTS = 4  # for a curve of three numbers


def nested_subset(dataset: Dataset, count: int, seed: int = 0) -> Dataset:
    """`count` images of a dataset, in its order; a smaller subset of one seed is part of every larger one."""
    chosen = np.random.default_rng(seed).permutation(len(dataset.images))[:count]
    return subset(dataset, [dataset.images[place].id for place in chosen])


def scaling_of(points: Sequence[tuple[float, int, Sequence[float]]], worthwhile: float) -> dict:
    """The part `scaling` of results.json: points, fit, stops_paying and a note.

    The fit is base + gain (1 - exp(-multiple / scale)) through the means, wanted only where it explains them better
    than the scatter between seeds. stops_paying: the smallest multiple from which doubling gains less than
    `worthwhile`, however much there is: on the fit, or else between the measured points; None where that is beyond the
    last.

    Args:
        points: (generated images as a multiple of the real ones, their number, score 0 to 1 of every seed).
    """
    points = sorted(points, key=lambda point: point[0])
    multiples = np.array([multiple for multiple, _, _ in points], dtype=float)
    means = np.array([np.mean(scores) for _, _, scores in points])
    fit = _fit(multiples, means, [scores for _, _, scores in points])
    if fit is None:
        stops = _between_points(multiples, means, worthwhile)
        note = "No saturating curve fits these points; the place is read off the measured ones."
    else:
        stops = _on_curve(fit, multiples[-1], worthwhile)
        note = f"Fit: {100 * fit['base']:.1f} {100 * fit['gain']:+.1f} (1 - exp(-x / {fit['scale']:.2g})) mAP."
    if stops is None:
        note += " Within what was measured, doubling still pays."
    elif stops == 0:
        note += " No amount of generated data that was measured pays."
    return {
        "points": [{"multiple": m, "images": n, "map": list(scores)} for m, n, scores in points],
        "fit": fit,
        "stops_paying": stops,
        "worthwhile": worthwhile,
        "note": note,
    }


def curve(fit: dict, multiple: float) -> float:
    """The fitted score at a multiple."""
    return fit["base"] + fit["gain"] * (1 - math.exp(-multiple / fit["scale"]))


def _fit(multiples: np.ndarray, means: np.ndarray, scores: Sequence[Sequence[float]]) -> dict | None:
    if len(multiples) < _LEAST_POINTS:
        return None
    span = float(multiples[-1] - multiples[0])
    try:
        found, _ = curve_fit(
            lambda x, base, gain, scale: base + gain * (1 - np.exp(-x / scale)),
            multiples,
            means,
            p0=(means[0], means[-1] - means[0], span / 3),
            bounds=([0, -1, span / 100], [1, 1, 10 * span]),
        )
    except (RuntimeError, ValueError):
        return None
    fit = dict(zip(("base", "gain", "scale"), (float(v) for v in found), strict=True))
    missed = math.sqrt(float(np.mean([(curve(fit, x) - y) ** 2 for x, y in zip(multiples, means, strict=True)])))
    scatter = float(np.mean([np.std(s, ddof=1) / math.sqrt(len(s)) if len(s) > 1 else 0.0 for s in scores]))
    return fit if missed <= max(2 * scatter, 1e-9) else None


def _on_curve(fit: dict, last: float, worthwhile: float) -> float | None:
    """By the curve: behind the last place of a fine grid, up to the last multiple, where doubling gains enough."""
    grid = np.linspace(0, last, 201)[1:]
    paying = [place for place, x in enumerate(grid) if curve(fit, 2 * x) - curve(fit, x) >= worthwhile]
    if not paying:
        return 0.0
    return None if paying[-1] == len(grid) - 1 else float(grid[paying[-1]])


def _between_points(multiples: np.ndarray, means: np.ndarray, worthwhile: float) -> float | None:
    """The measured multiple behind the last two between which it paid: the later one gains so much a doubling over any
    that is before it. From none to the first one counts as one doubling."""
    places = np.concatenate([[np.log2(multiples[1]) - 1], np.log2(multiples[1:])])
    paying = [
        later
        for later in range(1, len(means))
        if all(means[later] - means[k] >= worthwhile * (places[later] - places[k]) for k in range(later))
    ]
    if not paying:
        return 0.0
    return None if paying[-1] == len(means) - 1 else float(multiples[paying[-1]])
