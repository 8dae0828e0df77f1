"""Which detection matches which object, decided once per image, so that average precision of any resample of the
images is a sum and no second matching.

The matching is pycocotools' own (COCOeval.evaluate), with COCO's rules for crowds: a region with `iscrowd: 1` is no
object to be found, and a detection that lies in it counts neither for nor against.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.data.dataset import Dataset
from engine.evaluation.reference import class_names, run_coco

AREAS = ("all", "small", "medium", "large")  # COCO's, of the object in pixels: below 32^2, up to 96^2, above
IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
_CHUNK = 4_000_000  # resamples x detections worked on at once


@dataclass(frozen=True)
class ClassMatches:
    """All detections of one class over all images, highest score first.

    scores (D,) float; image (D,) index of the image; detection (D,) index in the list that was given;
    hit (T, D) bool, matched to an object or crowd at each IoU; ignored (T, D) bool, counts neither way;
    objects (M,) int, objects to be found in each image.
    """

    scores: np.ndarray
    image: np.ndarray
    detection: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray
    objects: np.ndarray


@dataclass(frozen=True)
class ImageResults:
    """What average precision needs of one set of detections, image by image.

    image_ids (M,) and classes (K,) by rising id; ious (T,); matches: area name -> one ClassMatches per class.
    """

    image_ids: tuple[int, ...]
    classes: tuple[str, ...]
    ious: np.ndarray
    matches: dict[str, tuple[ClassMatches, ...]]

    def average_precision(self, counts: np.ndarray | None = None, area: str = "all") -> np.ndarray:
        """(R, K, T) average precision over 101 recalls, for `counts` (R, M): how often each image is in a resample.

        None stands for every image once (R = 1). NaN where the resample holds no object of the class.
        """
        counts = self._counts(counts)
        return np.stack([_class_precision(matches, counts) for matches in self._area(area)], axis=1)

    def recall(self, counts: np.ndarray | None = None, area: str = "all") -> np.ndarray:
        """(R, K, T) share of the objects that are found with 100 detections an image; NaN as above."""
        counts = self._counts(counts)
        return np.stack([_class_recall(matches, counts) for matches in self._area(area)], axis=1)

    def mean_average_precision(self, counts: np.ndarray | None = None, area: str = "all") -> np.ndarray:
        """(R,) COCO's mAP: the mean over classes that occur, and IoU thresholds. NaN where no class occurs."""
        return mean_where_defined(self.average_precision(counts, area).mean(axis=2))

    def _counts(self, counts: np.ndarray | None) -> np.ndarray:
        if counts is None:
            return np.ones((1, len(self.image_ids)))
        counts = np.asarray(counts, dtype=float)
        if counts.ndim != 2 or counts.shape[1] != len(self.image_ids):
            raise ValueError(f"counts have shape {counts.shape}, expected (resamples, {len(self.image_ids)} images)")
        return counts

    def _area(self, area: str) -> tuple[ClassMatches, ...]:
        if area not in self.matches:
            raise ValueError(f"area '{area}' is not one of {', '.join(self.matches)}")
        return self.matches[area]


def image_results(dataset: Dataset, detections: Sequence[Mapping], ious: Sequence[float] | None = None) -> ImageResults:
    """Match once. Raises DatasetError for detections that cannot be scored."""
    run = run_coco(dataset, detections, ious)
    image_ids = tuple(sorted(image.id for image in dataset.images))
    per_image = iter(run.evalImgs)
    matches: dict[str, list[ClassMatches]] = {area: [] for area in AREAS}
    for _ in dataset.categories:  # pycocotools' order: class, area, image
        for area in AREAS:
            matches[area].append(_gather(per_image, len(image_ids), len(run.params.iouThrs)))
    return ImageResults(
        image_ids, class_names(dataset), np.asarray(run.params.iouThrs), {a: tuple(m) for a, m in matches.items()}
    )


def mean_where_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN where nothing is."""
    defined = ~np.isnan(values)
    number = defined.sum(axis=-1)
    total = np.where(defined, values, 0.0).sum(axis=-1)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def _gather(per_image: Iterator[dict | None], images: int, ious: int) -> ClassMatches:
    objects = np.zeros(images, dtype=int)
    scores, image, ids = [np.zeros(0)], [np.zeros(0, dtype=int)], [np.zeros(0, dtype=int)]
    hit, ignored = [np.zeros((ious, 0), dtype=bool)], [np.zeros((ious, 0), dtype=bool)]
    for index in range(images):
        result = next(per_image)
        if result is None:
            continue
        objects[index] = np.count_nonzero(np.asarray(result["gtIgnore"]) == 0)
        scores.append(np.asarray(result["dtScores"], dtype=float))
        image.append(np.full(len(result["dtScores"]), index))
        ids.append(np.asarray(result["dtIds"], dtype=int) - 1)
        hit.append(np.asarray(result["dtMatches"]) > 0)
        ignored.append(np.asarray(result["dtIgnore"], dtype=bool))
    order = np.argsort(-np.concatenate(scores), kind="stable")  # ties stay in image order, as in pycocotools
    return ClassMatches(
        np.concatenate(scores)[order],
        np.concatenate(image)[order],
        np.concatenate(ids)[order],
        np.concatenate(hit, axis=1)[:, order],
        np.concatenate(ignored, axis=1)[:, order],
        objects,
    )


def _class_precision(matches: ClassMatches, counts: np.ndarray) -> np.ndarray:
    """(R, T) average precision. Precision peaks at true positives only, so the rest is needed as a running count."""
    out = np.zeros((len(counts), len(matches.hit)))
    rows = max(1, _CHUNK // max(1, matches.scores.size))
    for start in range(0, len(counts), rows):
        part = counts[start : start + rows]
        objects = part @ matches.objects
        weights = part[:, matches.image]
        detections = np.cumsum(weights, axis=1)
        for t, (hit, ignored) in enumerate(zip(matches.hit, matches.ignored, strict=True)):
            places = np.flatnonzero(hit & ~ignored)
            if places.size == 0:
                continue
            found = np.cumsum(weights[:, places], axis=1)
            counted = detections[:, places] - _weight_before(weights, np.flatnonzero(ignored), places)
            precision = found / (counted + np.spacing(1))
            envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            recall = found / np.maximum(objects, 1)[:, None]
            # how many of the 101 recalls are reached by each true positive, and by none before it
            reached = np.searchsorted(RECALLS, recall, side="right")
            out[start : start + rows, t] = (envelope * np.diff(reached, axis=1, prepend=0)).sum(axis=1) / RECALLS.size
        out[start : start + rows][objects == 0] = np.nan
    return out


def _weight_before(weights: np.ndarray, ignored: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(R, P) summed weight of the ignored detections that come before each place."""
    if ignored.size == 0:
        return np.zeros((len(weights), places.size))
    running = np.cumsum(np.concatenate([np.zeros((len(weights), 1)), weights[:, ignored]], axis=1), axis=1)
    return running[:, np.searchsorted(ignored, places)]


def _class_recall(matches: ClassMatches, counts: np.ndarray) -> np.ndarray:
    objects = counts @ matches.objects
    found = np.zeros((len(counts), len(matches.hit)))
    for t, places in enumerate(matches.hit & ~matches.ignored):
        found[:, t] = counts[:, matches.image[places]].sum(axis=1)
    return np.where(objects[:, None] > 0, found / np.maximum(objects, 1)[:, None], np.nan)
