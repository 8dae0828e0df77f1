"""The figures of a dataset's card: what became of the plan, how good the labels are, and the faults that follow."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

_SCORES = (("AP", "map"), ("AP50", "map50"), ("AP75", "map75"))
WEAK_AP, FEW_OBJECTS = 0.2, 20  # below: named among the faults


def counted(manifest: Mapping) -> dict:
    """planned = kept + dropped + failed with their reasons, and the objects of each class."""
    counts = manifest["counts"]
    lists = {key: sorted((counts.get(key) or {}).items()) for key in ("dropped", "failed", "dropped_boxes")}
    return {
        "counts": counts,
        "kept": counts["kept"],
        "boxes": counts["boxes"],
        "classes": manifest["classes"],
        "dropped_sum": sum(number for _, number in lists["dropped"]),
        "failed_sum": sum(number for _, number in lists["failed"]),
        **lists,
    }


def reviewed(path: Path) -> dict | None:
    """What decisions.json says: accepted, rejected [(reason, images)], by_person; None where nothing was reviewed."""
    try:
        content = json.loads(path.read_bytes())
        reasons = Counter(reason.partition(":")[0] for reason in content["rejected"].values())
        accepted, by_person = len(content["accepted"]), len(content.get("reviewer", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return {"accepted": accepted, "rejected": sorted(reasons.items()), "by_person": by_person}


def quality_of(manifest: Mapping, card: Mapping) -> dict:
    """The adapter on validation images, and from which score on its boxes became labels. `card` may be empty."""
    own = manifest["identity"].get("adapter") or {}
    validation = own.get("validation") or {}
    generation = manifest["settings"].get("generation", {})
    scores = [(words, _points(validation.get(key))) for words, key in _SCORES] if validation else []
    return {
        "scores": scores,
        "validation_images": validation.get("images", "the"),
        "class_scores": [(name, _points(value)) for name, value in (validation.get("per_class") or {}).items()],
        "per_class_ap": validation.get("per_class") or {},
        "threshold_words": _threshold_words(generation, card),
        "thresholds": _threshold_rows(manifest, card) if own.get("thresholds") else [],
    }


def _threshold_words(generation: Mapping, card: Mapping) -> str:
    ignored = f"boxes from {generation.get('ignore_threshold')} up to there are ignore regions (`iscrowd: 1`)."
    if generation.get("thresholds") != "per_class":
        return f"A box is a label from score {generation.get('score_threshold')} on, in every class; {ignored}"
    wanted = (card.get("thresholds") or {}).get("wanted_precision")
    chosen = f", chosen for precision {wanted} on validation images" if wanted is not None else ""
    return f"A box is a label from the score of its class on{chosen}; {ignored}"


def _threshold_rows(manifest: Mapping, card: Mapping) -> list[dict]:
    known = (card.get("thresholds") or {}).get("per_class") or {}
    names = {str(row["id"]): row["name"] for row in manifest["classes"]}
    rows = []
    for category_id, score in manifest["identity"]["adapter"]["thresholds"].items():
        entry = known.get(category_id) or {}
        figures = {"score": "never" if score is None else f"{score:.3f}"}
        figures |= {key: _ratio(entry.get(key)) for key in ("precision", "recall")}
        rows.append({"name": names.get(category_id, category_id), **figures})
    return rows


def faults_of(manifest: Mapping, review: Mapping | None, quality: Mapping) -> list[str]:
    """What whoever trains on the dataset should know, as sentences."""
    faults = [
        "Labels are a detector's: it misses objects, and where it is wrong in one picture it is wrong in many alike.",
        "Boxes fit the picture as it was drawn; what the diffusion model draws badly is labelled all the same.",
    ]
    counts, classes = manifest["counts"], manifest["classes"]
    if not quality["scores"]:
        faults.append("The adapter was not measured on real images, so the error rate of the labels is unknown.")
    measured = [(name, ap) for name, ap in quality["per_class_ap"].items() if ap is not None]
    weak = [f"{name} ({_points(ap)})" for name, ap in measured if ap < WEAK_AP]
    if weak:
        faults.append(f"The adapter is weak (AP below {100 * WEAK_AP:.0f}) in: {', '.join(weak)}.")
    none = [row["name"] for row in classes if not row["boxes"]]
    if none:
        faults.append(f"Classes without a single object: {', '.join(none)}.")
    few = [f"{row['name']} ({row['boxes']})" for row in classes if 0 < row["boxes"] < FEW_OBJECTS]
    if few:
        faults.append(f"Classes with fewer than {FEW_OBJECTS} objects: {', '.join(few)}.")
    failed = sum((counts.get("failed") or {}).values())
    if failed:
        faults.append(f"{failed} of {counts['planned']} planned images could not be drawn.")
    if review is None:
        faults.append("Not reviewed: no filter and no person has looked at the images.")
    elif not review["by_person"]:
        faults.append("Reviewed by filters only: no person has looked at the images.")
    return faults


def _points(score: float | None) -> str:
    return "-" if score is None else f"{100 * score:.1f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
