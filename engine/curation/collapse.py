"""Has the generator collapsed? The spread of the generated images against that of the real training images.

A collapsed generator draws the same picture from every source. No comparison of neighbours within the batch shows it
(where all images are alike, none stands out), so the real images give the measure: two generated images that were not
drawn from the same real one should be about as far apart as two real ones. Variants of one source may be alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.curation.perceptual import hash_distances
from engine.curation.verdicts import BORDERLINE, FAIL, PASS, Batch, Findings, grade
from engine.sections import ReviewSettings

FEWEST = 10  # generated images, origins and real images: with fewer, chance says more than the generator
_SAMPLE = 2000  # images that each one is compared with at most
_BLOCK = 512  # rows of the distance table held in memory at once

Distances = Callable[[Sequence, Sequence], np.ndarray]


@dataclass(frozen=True)
class Spread:
    """How far apart images are, in the unit of the distance.

    Attributes:
        generated, real: mean distance of two generated images of different origin, and of two real ones.
        crowding: (N,) share of the images of other origin that are nearer to each generated one than `min_spread` of
            the real mean.
        usual: the largest such share of a real image among the real ones.
    """

    generated: float
    real: float
    crowding: np.ndarray
    usual: float


def measure_spread(
    generated: Sequence, origins: Sequence[object], real: Sequence, distances: Distances, nearer: float
) -> Spread | None:
    """Compare the spread of generated images with that of real ones.

    Args:
        generated, real: what the distance is between, one entry an image.
        origins: (N,) what each generated image was drawn from; equal values are not compared, and each value counts as
            much as any other, however many images it gave.
        distances: (n entries, m entries) -> (n, m).
        nearer: share of the real mean distance below which two images are neighbours.

    Returns:
        None with fewer than FEWEST generated images, origins or real images.
    """
    if min(len(real), len(generated), len(set(origins))) < FEWEST:
        return None
    real_mean, _ = _against_each_other(real, range(len(real)), distances, 0.0)
    radius = nearer * real_mean
    _, usual = _against_each_other(real, range(len(real)), distances, radius)
    mean, crowding = _against_each_other(generated, origins, distances, radius)
    return Spread(mean, real_mean, crowding, float(usual.max()))


def check_collapse(
    image_ids: Sequence[int],
    spreads: Mapping[str, Spread],
    settings: ReviewSettings,
    findings: Mapping[int, Findings],
) -> Batch:
    """Judge the batch, and fail the images of a clump: add the score crowding and the reason collapsed.

    Args:
        image_ids: of the images that the spreads are of, in their order.
        spreads: what was compared -> its spread; the worst of them decides.
    """
    figures: dict[str, dict[str, float]] = {}
    outcomes, notes = [], []
    for name, spread in spreads.items():
        limit = spread.usual + settings.clump_share
        clump = 0
        for image_id, share in zip(image_ids, spread.crowding.tolist(), strict=True):
            found, outcome = findings[image_id], grade(-share, -limit, settings.borderline_margin)
            found.scores["crowding"] = max(share, found.scores.get("crowding", 0.0))
            words = f"{share:.0%} of the images drawn from others look like it, of real ones {spread.usual:.0%} at most"
            found.add("collapsed", outcome, f"{words} ({name})")
            clump += outcome == FAIL
        ratio = spread.generated / spread.real if spread.real else 1.0
        figures[name] = {"generated": spread.generated, "real": spread.real, "ratio": ratio, "clump": float(clump)}
        outcomes.append(grade(ratio, settings.min_spread, settings.borderline_margin))
        if clump:
            outcomes.append(FAIL if clump >= settings.clump_share * len(image_ids) else BORDERLINE)
        notes.append(f"spread {ratio:.2f} of the real images' by {name}, {clump} images in a clump")
    if not outcomes:
        return Batch(None, {}, f"fewer than {FEWEST} generated images, sources or real images: too few to tell")
    worst = next(word for word in (FAIL, BORDERLINE, PASS) if word in outcomes)
    return Batch(worst, figures, "; ".join(notes))


def bits_apart(first: Sequence[int], second: Sequence[int]) -> np.ndarray:
    """(n, m) differing bits of hashes, as floats."""
    return hash_distances(first, second).astype(np.float32)


def euclidean(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
    """(n, m) Euclidean distances of features. Not the cosine: what all generated images have in common, such as a
    texture of the model, changes angles between them and no distances."""
    a, b = np.asarray(first), np.asarray(second)
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0.0))


def _against_each_other(
    entries: Sequence, origins: Sequence[object], distances: Distances, radius: float
) -> tuple[float, np.ndarray]:
    """The mean distance of two entries of different origin, and for each entry the share of those of other origin that
    is nearer than `radius`."""
    columns = np.unique(np.linspace(0, len(entries) - 1, min(len(entries), _SAMPLE)).round().astype(int))
    numbers = {origin: number for number, origin in enumerate(dict.fromkeys(origins))}
    labels = np.array([numbers[origin] for origin in origins])
    sizes = Counter(labels[columns].tolist())
    weights = np.array([1.0 / sizes[label] for label in labels[columns].tolist()])
    others = [entries[column] for column in columns]
    summed = weighed = 0.0
    shares = []
    for start in range(0, len(entries), _BLOCK):
        table = distances(entries[start : start + _BLOCK], others)
        weight = weights * (labels[start : start + _BLOCK, None] != labels[columns])
        total = weight.sum(axis=1)
        summed, weighed = summed + float((table * weight).sum()), weighed + float(total.sum())
        # An image may be compared with none where nearly all others are of its own origin: it is in no clump then.
        shares.append(((table < radius) * weight).sum(axis=1) / np.maximum(total, 1e-12))
    return summed / weighed, np.concatenate(shares)
