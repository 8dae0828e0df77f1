"""From which score on an adapter's boxes are labels: chosen per class on held-out real images, kept in its card.

Never from test images: `choose_thresholds` is given the validation split, and so is the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.data.dataset import Dataset
from engine.errors import ModelError
from engine.evaluation.coco_map import Matched, match
from engine.generation.labels import DIGITS, suppressed

IOU = 0.5  # with an object, from which on a box is right
MIN_BOXES = 20  # objects of a class; with fewer its own precision is chance, and the pooled threshold serves
MIN_ACCEPTED = 5  # boxes that a threshold must rest on: a single lucky box has precision 1


@dataclass(frozen=True)
class OperatingPoints:
    """What each threshold gives, highest first; equal scores are accepted together.

    scores (P,); precision and recall (P,) of the boxes from that score on; accepted (P,) int, how many they are.
    """

    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    accepted: np.ndarray

    @classmethod
    def of(cls, matched: Matched) -> OperatingPoints:
        """Recall is 0 where there is no object."""
        last = np.flatnonzero(np.diff(matched.scores, append=-1.0))
        found, accepted = np.cumsum(matched.hit)[last], last + 1
        return cls(matched.scores[last], found / accepted, found / max(matched.objects, 1), accepted)

    def at(self, score: float) -> tuple[float | None, float]:
        """(precision, recall) of the boxes from `score` on; precision is None where there is no box."""
        place = int(np.count_nonzero(self.scores >= score)) - 1
        return (None, 0.0) if place < 0 else (float(self.precision[place]), float(self.recall[place]))


def choose_thresholds(
    val: Dataset, detections: Sequence[Mapping], wanted_precision: float, suppress_iou: float = 1.0
) -> dict:
    """The lowest score per class from which on the adapter's boxes have the wanted precision, as a json-ready mapping.

    A box is right when COCO's matching pairs it with an object of its class at IoU 0.5; boxes in ignore regions count
    neither way. A class of fewer than MIN_BOXES objects takes the threshold of all classes together (`pooled: true`).

    Args:
        val: held-out real images. detections: COCO result dicts of the adapter on them.
        suppress_iou: as in `GenerationSettings`; generation drops such boxes before it looks at thresholds.

    Returns:
        {wanted_precision, iou, suppress_iou, min_boxes, images, pooled: entry, per_class: {category id: entry}} with
        entry {score, precision, recall, boxes, pooled}. `score` None: the precision is never reached, and no box of the
        class becomes a label; precision and recall are then those of the score of best precision. `precision` None: no
        box has that score. `boxes`: objects that there were to find.

    Raises:
        DatasetError: detections that cannot be scored.
    """
    matched = matched_by_class(val, without_suppressed(detections, suppress_iou))
    pooled = _entry(pool(matched.values()), wanted_precision)
    per_class = {}
    for category_id, own in matched.items():
        if own.objects >= MIN_BOXES:
            entry = _entry(own, wanted_precision) | {"pooled": False}
        else:
            score = pooled["score"]
            precision, recall = (None, 0.0) if score is None else OperatingPoints.of(own).at(score)
            entry = {"score": score, "precision": precision, "recall": recall, "boxes": own.objects, "pooled": True}
        per_class[str(category_id)] = entry
    return {
        "wanted_precision": wanted_precision,
        "iou": IOU,
        "suppress_iou": suppress_iou,
        "min_boxes": MIN_BOXES,
        "images": len(val.images),
        "pooled": pooled,
        "per_class": per_class,
    }


def label_thresholds(card: Mapping, folder: Path) -> dict[str, float | None]:
    """The adapter's own threshold of each category id, None for a class that gives no labels.

    Raises:
        ModelError: the card has none, or no class reaches the wanted precision.
    """
    if "thresholds" not in card:
        raise ModelError(
            f"The adapter in {folder} carries no thresholds per class: it was not measured on validation images. Run "
            "de adapter-report on it with a dataset that has val.json, or set generation.thresholds=fixed."
        )
    scores = {category_id: entry["score"] for category_id, entry in card["thresholds"]["per_class"].items()}
    if all(score is None for score in scores.values()):
        wanted, best = card["thresholds"]["wanted_precision"], card["thresholds"]["pooled"]["precision"]
        reached = "it has no boxes at all" if best is None else f"all classes together reach {best:.2f} at best"
        raise ModelError(
            f"No class of the adapter in {folder} reaches the wanted precision {wanted} on its validation images "
            f"({reached}): not one box would become a label. Train the adapter longer, run de adapter-report with a "
            "lower adapter.wanted_precision, or set generation.thresholds=fixed."
        )
    return scores


def check_quality(card: Mapping, floor: float, folder: Path) -> None:
    """Refuse an adapter below `generation.min_adapter_map`.

    Raises:
        ModelError: its AP on held-out real images is below the floor, or unknown while there is a floor.
    """
    if floor <= 0:
        return
    score = (card.get("validation") or {}).get("map")
    if score is None:
        raise ModelError(
            f"The AP of the adapter in {folder} on held-out real images is not known, and generation.min_adapter_map="
            f"{floor:g} asks for it. Train it on a dataset with labelled images in val.json, or set the floor to 0."
        )
    if score < floor:
        raise ModelError(
            f"The adapter in {folder} has AP {score:.3f} on held-out real images, below generation.min_adapter_map="
            f"{floor:g}: its labels are not good enough by your own rule. Train it longer or on more labels, or lower "
            "the floor."
        )


def matched_by_class(dataset: Dataset, detections: Sequence[Mapping]) -> dict[int, Matched]:
    """By category id, rising: detections matched at IoU 0.5, highest score first, scores rounded as in label files."""
    rounded = [{**d, "score": round(float(d["score"]), DIGITS)} for d in detections]
    category_ids = sorted(category.id for category in dataset.categories)
    return dict(zip(category_ids, match(dataset, rounded, IOU).values(), strict=True))


def pool(matched: Sequence[Matched]) -> Matched:
    """All classes as one, highest score first."""
    matched = list(matched)
    scores = np.concatenate([m.scores for m in matched])
    order = np.argsort(-scores, kind="stable")
    hit, detection = (np.concatenate([getattr(m, name) for m in matched])[order] for name in ("hit", "detection"))
    return Matched(scores[order], hit, detection, sum(m.objects for m in matched))


def without_suppressed(detections: Sequence[Mapping], iou: float) -> list[Mapping]:
    """COCO result dicts without those that a better one of their image overlaps by `iou` or more; order kept."""
    by_image: dict[int, list[int]] = {}
    for index, detection in enumerate(detections):
        by_image.setdefault(detection["image_id"], []).append(index)
    gone = np.zeros(len(detections), dtype=bool)
    for places in by_image.values():
        chosen = [detections[i] for i in places]
        columns = (np.array([d[name] for d in chosen]) for name in ("bbox", "score", "category_id"))
        gone[places] = suppressed(*columns, iou)
    return [detection for detection, out in zip(detections, gone, strict=True) if not out]


def _entry(matched: Matched, wanted_precision: float) -> dict:
    points = OperatingPoints.of(matched)
    enough = points.accepted >= MIN_ACCEPTED
    reaching = np.flatnonzero(enough & (points.precision >= wanted_precision))
    entry = {"score": None, "precision": None, "recall": 0.0, "boxes": matched.objects}
    if reaching.size:
        place = reaching[-1]
        entry["score"] = float(points.scores[place])
    elif enough.any():
        place = int(np.argmax(np.where(enough, points.precision, -1.0)))
    else:
        return entry
    return entry | {"precision": float(points.precision[place]), "recall": float(points.recall[place])}
