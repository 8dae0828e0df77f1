"""How good an adapter's labels are, measured on held-out real images before anything is generated.

Everything here looks at the validation split alone; the test split stays untouched.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.adapter.adapter import CARD, frame_of, read_card
from engine.adapter.agreement import RatioSheet, measure_ratios, real_labels
from engine.adapter.thresholds import OperatingPoints, choose_thresholds, matched_by_class, pool, without_suppressed
from engine.adapter.train import text_of
from engine.config import as_dict
from engine.data.dataset import Dataset, splits_of
from engine.data.files import write_atomically
from engine.detection.prediction import predict
from engine.errors import DatasetError
from engine.evaluation.coco_map import Matched, evaluate
from engine.generation.draw import AdapterDrawer, load_drawer
from engine.generation.labels import LabelRules
from engine.sections import Settings

SCORES = tuple(round(0.02 * k, 2) for k in range(51))  # thresholds at which the curves are written down
BINS = 10


@dataclass(frozen=True)
class Quality:
    """The numbers (json-ready, what quality.json holds), and the pictures beside them."""

    numbers: dict
    sheets: tuple[RatioSheet, ...]


def measure_quality(
    data: Path, ldm: str | Path, adapter: Path, settings: Settings, images: int = 50, seed: int = 0
) -> Quality:
    """Measure an adapter on `data`/val.json, and after img2img from its images at encode ratios 0.1 to 1.0.

    Args:
        images: how many of the validation images serve img2img; each is drawn once per encode ratio.
        seed: of that choice and of the drawing.

    Raises:
        DatasetError: no val.json, or no image in it.
        ModelError: the adapter belongs to another model, other classes, another resolution or noise level.
    """
    if "val" not in splits_of(data):
        raise DatasetError(
            f"{data} has no val.json: the report measures an adapter on held-out real images. Set some aside with "
            "de import --val 0.2, or put a val.json with labelled images there."
        )
    drawer = load_drawer(data, ldm, adapter, _open(settings), "val")
    val, card = drawer.dataset, drawer.adapter.card
    if not val.images:
        raise DatasetError(
            f"{data / 'val.json'} holds no image to measure on. Set some aside with de import --val 0.2."
        )
    detections = predict_sources(drawer, settings)
    wanted = settings.adapter.wanted_precision
    thresholds = choose_thresholds(val, detections, wanted, settings.generation.suppress_iou)
    rules = _rules(settings, thresholds)
    ratios, sheets = measure_ratios(drawer, real_labels(val, detections), settings, rules, images, seed)
    numbers = {
        "adapter": {
            key: card[key] for key in ("weights_sha256", "ldm", "head", "timestep", "prompt_mode", "resolution")
        },
        "data": {"images": len(val.images), "sha256": val.digest()},
        "real": dataclasses.asdict(evaluate(val, detections)),
        "classes": {str(c.id): c.name for c in val.categories},
        "thresholds": thresholds,
        **_score_numbers(val, detections, settings),
        "encode_ratios": ratios,
        "settings": {"generation": as_dict(settings.generation), "ldm": as_dict(settings.ldm)},
    }
    return Quality(numbers, sheets)


def record_quality(adapter: Path, numbers: Mapping) -> dict:
    """Add a summary of a report to the adapter's card, the weights untouched; returns the card.

    The thresholds are written too where the card has none, or others were asked for. The card's `quality` is no part of
    a plan's digest: a run that was begun goes on after a report.

    Raises:
        ModelError: no adapter there.
    """
    card, thresholds = read_card(adapter), numbers["thresholds"]
    kept = ("images", "seed", "rule", "real", "ratios")
    card["quality"] = {
        "data_sha256": numbers["data"]["sha256"],
        "calibration_error": numbers["reliability"]["calibration_error"],
        "encode_ratios": {key: numbers["encode_ratios"][key] for key in kept},
    }
    asked = ("wanted_precision", "suppress_iou", "images")
    if any(card.get("thresholds", {}).get(key) != thresholds[key] for key in asked):
        card["thresholds"] = thresholds
    write_atomically(adapter / CARD, (json.dumps(card, indent=1, sort_keys=True) + "\n").encode())
    return card


def curve(matched: Matched) -> dict[str, list[float | None]]:
    """Precision and recall of the boxes from each of SCORES on; None where there is no box, or no object to find."""
    points = OperatingPoints.of(matched)
    pairs = [points.at(score) for score in SCORES]
    return {
        "precision": [precision for precision, _ in pairs],
        "recall": [recall if matched.objects else None for _, recall in pairs],
    }


def reliability(matched: Matched) -> dict:
    """Score against precision in ten bins of equal width, and the expected calibration error (Guo et al. 2017, eq. 3).

    A bin is {low, high, boxes, score: mean, precision}; the last two are None in an empty one, and so is the error
    without any box.
    """
    place = np.minimum((matched.scores * BINS).astype(int), BINS - 1)
    bins, error = [], 0.0
    for index in range(BINS):
        inside = place == index
        number = int(inside.sum())
        score = float(matched.scores[inside].mean()) if number else None
        precision = float(matched.hit[inside].mean()) if number else None
        error += abs(score - precision) * number if number else 0.0
        bins.append(
            {"low": index / BINS, "high": (index + 1) / BINS, "boxes": number, "score": score, "precision": precision}
        )
    total = len(matched.scores)
    return {"bins": bins, "boxes": total, "calibration_error": error / total if total else None}


def _score_numbers(val: Dataset, detections: Sequence[Mapping], settings: Settings) -> dict:
    """Curves, reliability, and what the fixed threshold gives: of the boxes that suppression leaves."""
    matched = matched_by_class(val, without_suppressed(detections, settings.generation.suppress_iou))
    pooled, score = pool(matched.values()), settings.generation.score_threshold
    fixed = {str(c): _pair(m, score) for c, m in matched.items()}
    return {
        "curves": {
            "scores": list(SCORES),
            "pooled": curve(pooled),
            "per_class": {str(c): curve(m) for c, m in matched.items()},
        },
        "fixed": {"score": score, "pooled": _pair(pooled, score), "per_class": fixed},
        "reliability": reliability(pooled),
    }


def _pair(matched: Matched, score: float) -> dict:
    precision, recall = OperatingPoints.of(matched).at(score)
    return {"precision": precision, "recall": recall if matched.objects else None, "boxes": matched.objects}


def _open(settings: Settings) -> Settings:
    """Settings under which a drawer gives every box, and measuring is never refused."""
    generation = dataclasses.replace(settings.generation, ignore_threshold=0.0, thresholds="fixed", min_adapter_map=0.0)
    return dataclasses.replace(settings, generation=generation)


def predict_sources(drawer: AdapterDrawer, settings: Settings) -> list[dict]:
    """The adapter's boxes on all of the drawer's real images, as training measures them."""
    adapter, card = drawer.adapter, drawer.adapter.card
    words = dataclasses.replace(settings, adapter=dataclasses.replace(settings.adapter, prompt=card["prompt_mode"]))
    detector = adapter.on(drawer.ldm)
    frame, device = frame_of(drawer.ldm, card["resolution"]), drawer.ldm.device
    return predict(detector.detect, drawer.dataset, frame, device=device, text_of=text_of(drawer.dataset, words))


def _rules(settings: Settings, thresholds: Mapping) -> LabelRules:
    """The rules by which generation would label, with the thresholds just chosen where it uses the adapter's own."""
    own = {category_id: entry["score"] for category_id, entry in thresholds["per_class"].items()}
    return LabelRules.of(as_dict(settings.generation), {"thresholds": own})
