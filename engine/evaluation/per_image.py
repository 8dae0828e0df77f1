"""Single test images on which two arms differ most, by a rule that needs no score threshold.

In an image with n objects each detector may give n boxes, its surest ones (detections in ignore regions apart); an
object is found when one of them has its class and overlaps it by IoU 0.5. Found / n is precision, recall and F1 at
once, the R-precision of information retrieval. The change of an image is the treatment's score minus the baseline's
with the seed in the middle: of an odd number of seeds the median, of an even number that of the two in the middle which
is nearer to no change, and none where they disagree in sign. So no lucky seed makes an example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.data.dataset import Annotation, Dataset, subset
from engine.evaluation.matching import ImageResults
from engine.evaluation.reference import run_coco

IOU = 0.5


@dataclass(frozen=True)
class Shown:
    """The n surest detections of one image with n objects: those that found an object, those that did not, and the
    objects that none of them found."""

    found: list[Mapping]
    wrong: list[Mapping]
    missed: list[Annotation]


def largest_changes(
    baseline: Sequence[ImageResults], treatment: Sequence[ImageResults], seeds: Sequence[int], most: int = 4
) -> dict:
    """The images on which the treatment gains most, and those on which it loses most; ties: more objects, lower id.

    Returns:
        {iou, images: {better, worse, same, empty: n without objects}, better, worse: [{image_id, seed, objects,
        found: [baseline, treatment], change}]}, `most` of each at most; seed: the one in the middle.
    """
    objects = sum(matches.objects for matches in baseline[0].matches["all"])
    before, after = (np.stack([found_first(result) for result in arm]) for arm in (baseline, treatment))
    some = objects > 0
    middle, change = _middle((after - before) / np.maximum(objects, 1))
    better, worse = some & (change > 0), some & (change < 0)

    def entry(place: int) -> dict:
        seed = middle[place]
        return {
            "image_id": int(baseline[0].image_ids[place]),
            "seed": seeds[seed],
            "objects": int(objects[place]),
            "found": [int(before[seed, place]), int(after[seed, place])],
            "change": float(change[place]),
        }

    def chosen(where: np.ndarray) -> list[dict]:
        places = sorted(np.flatnonzero(where), key=lambda i: (-abs(change[i]), -objects[i], i))
        return [entry(place) for place in places[:most]]

    counts = {"better": better, "worse": worse, "same": some & ~better & ~worse, "empty": ~some}
    return {
        "iou": IOU,
        "images": {word: int(where.sum()) for word, where in counts.items()},
        "better": chosen(better),
        "worse": chosen(worse),
    }


def _middle(changes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(M,) index of the seed in the middle of (S, M) changes, and its change; 0 where the middle has both signs."""
    order = np.argsort(changes, axis=0, kind="stable")
    pair = order[[(len(changes) - 1) // 2, len(changes) // 2]]
    low, high = np.take_along_axis(changes, pair, axis=0)
    middle = np.where(np.abs(low) <= np.abs(high), pair[0], pair[1])
    return middle, np.where(low * high > 0, np.where(np.abs(low) <= np.abs(high), low, high), 0.0)


def found_first(results: ImageResults) -> np.ndarray:
    """(M,) how many objects of each image its n surest detections find, n being the number of its objects."""
    classes = results.matches["all"]
    t = int(np.flatnonzero(np.isclose(results.ious, IOU))[0])
    counted = [~m.ignored[t] for m in classes]
    scores = np.concatenate([m.scores[keep] for m, keep in zip(classes, counted, strict=True)])
    image = np.concatenate([m.image[keep] for m, keep in zip(classes, counted, strict=True)])
    hit = np.concatenate([m.hit[t][keep] for m, keep in zip(classes, counted, strict=True)])
    order = np.lexsort((-scores, image))
    image, hit = image[order], hit[order]
    rank = np.arange(len(image)) - np.searchsorted(image, image, side="left")
    objects = sum(m.objects for m in classes)
    return np.bincount(image[hit & (rank < objects[image])], minlength=len(results.image_ids))


def shown_boxes(dataset: Dataset, image_id: int, detections: Sequence[Mapping]) -> Shown:
    """What `found_first` counts in one image, box by box. detections: of any images, in COCO's form.

    Raises DatasetError for detections that cannot be scored.
    """
    alone = subset(dataset, [image_id])
    own = [detection for detection in detections if detection["image_id"] == image_id]
    places = [result for result in run_coco(alone, own, [IOU]).evalImgs[::4] if result is not None]  # area: all
    judged = [
        (score, int(index) - 1, int(match))
        for result in places
        for score, index, match, ignored in zip(
            result["dtScores"], result["dtIds"], result["dtMatches"][0], result["dtIgnore"][0], strict=True
        )
        if not ignored
    ]
    objects = [a for a in alone.annotations if not a.iscrowd]
    first = sorted(judged, key=lambda entry: -entry[0])[: len(objects)]
    matched = {match for _, _, match in first}
    numbered = enumerate(alone.annotations, start=1)  # as run_coco numbers them
    return Shown(
        [own[index] for _, index, match in first if match],
        [own[index] for _, index, match in first if not match],
        [a for number, a in numbered if not a.iscrowd and number not in matched],
    )
