"""Ways to use a pool of generated images, that a comparison on validation images can choose among.

The pool is drawn once, over wide ranges and with labels of any score; a candidate is a part of it with thresholds of
its own. So trying one costs a training and no drawing.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.data.dataset import Dataset, subset
from engine.evaluation.coco_map import match

BINS = tuple(k / 10 for k in range(11))  # of encode ratios, at which agreement is measured
LEAST_IN_BIN = 8  # images; fewer say nothing
KEEPS = 0.9  # of the best bin's agreement: encode ratios up to where it falls below this are faithful


@dataclass(frozen=True)
class Candidate:
    """Images up to an encode ratio and a guidance; boxes from `score` on are labels, from half of it on ignore regions;
    `share` of each batch."""

    strength_max: float
    guidance_max: float
    score: float
    share: float

    @property
    def name(self) -> str:
        """As a folder is named."""
        return f"ratio{self.strength_max:g}-guidance{self.guidance_max:g}-score{self.score:g}-share{self.share:g}"

    @property
    def ignore(self) -> float:
        """The lowest score of an ignore region."""
        return self.score / 2

    def settings(self, strength_min: float, guidance_min: float) -> dict[str, dict]:
        """What to write into a settings file to generate and train so.

        Args:
            strength_min, guidance_min: of the pool that it was tried on.
        """
        generation = {
            "strength_min": strength_min,
            "strength_max": self.strength_max,
            "guidance_min": guidance_min,
            "guidance_max": self.guidance_max,
            "text_to_image": 0.0,
            "keep_negatives": False,
            "thresholds": "fixed",
            "score_threshold": self.score,
            "ignore_threshold": self.ignore,
        }
        return {"generation": generation, "compare": {"generated_share": self.share}}

    def part_of(self, pool: Dataset) -> Dataset:
        """The images and boxes of a pool that this candidate trains on; every box of a pool has a score."""
        near = {
            image.id
            for image in pool.images
            if image.extra["de"]["strength"] <= self.strength_max + 1e-9
            and image.extra["de"]["guidance_scale"] <= self.guidance_max + 1e-9
        }
        chosen = subset(pool, near)
        boxes = tuple(
            dataclasses.replace(a, iscrowd=int(a.extra["score"] < self.score))
            for a in chosen.annotations
            if a.extra["score"] >= self.ignore
        )
        return subset(dataclasses.replace(chosen, annotations=boxes), {a.image_id for a in boxes if not a.iscrowd})


def fidelity(pool: Dataset, detected: Dataset, score: float) -> list[dict]:
    """How far the labels of a pool and a detector that learned from real images alone agree, by encode ratio.

    Args:
        detected: the same images (by id) with the detector's labels.

    Returns:
        {low, high, images, f1 at IoU 0.5} of every bin of BINS with at least LEAST_IN_BIN images; f1 is None without
        boxes.
    """
    rows = []
    for low, high in itertools.pairwise(BINS):
        images = [image.id for image in pool.images if low <= min(image.extra["de"]["strength"], 0.999) < high]
        if len(images) < LEAST_IN_BIN:
            continue
        labels = subset(pool, images)
        labels = dataclasses.replace(
            labels, annotations=tuple(a for a in labels.annotations if not a.iscrowd and a.extra["score"] >= score)
        )
        wanted = set(images)
        found = [
            {"image_id": a.image_id, "category_id": a.category_id, "bbox": list(a.bbox_xywh), "score": a.extra["score"]}
            for a in detected.annotations
            if a.image_id in wanted and not a.iscrowd
        ]
        matched = list(match(labels, found).values()) if found and labels.annotations else []
        total = len(labels.annotations) + len(found)
        hits = sum(int(m.hit.sum()) for m in matched)
        rows.append({"low": low, "high": high, "images": len(images), "f1": 2 * hits / total if total else None})
    return rows


def faithful_ratio(rows: Sequence[dict]) -> float:
    """The upper end of the last bin, from the lowest on, whose agreement keeps KEEPS of the best; that of the first
    where none is defined."""
    best = max((row["f1"] or 0.0 for row in rows), default=0.0)
    limit = rows[0]["high"]
    for row in rows:
        if not row["f1"] or row["f1"] < KEEPS * best:
            break
        limit = row["high"]
    return limit


def propose(
    limit: float, highest: float, scores: Sequence[float], guidance: Sequence[float], shares: Sequence[float], seed: int
) -> list[Candidate]:
    """Every combination around a faithful encode ratio, up to the pool's highest; any first n are a fair choice."""
    ratios = sorted({round(min(limit * factor, highest), 2) for factor in (0.6, 1.0, 1.4)})
    every = [Candidate(*values) for values in itertools.product(ratios, guidance, scores, shares)]
    return [every[place] for place in np.random.default_rng(seed).permutation(len(every))]
