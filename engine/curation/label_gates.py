"""Gates that look at an image's boxes alone: geometry, classes, scores, number, agreement with the source's boxes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set

import numpy as np

from engine.curation.provenance import encode_ratio, redrawn_image_id
from engine.curation.verdicts import BORDERLINE, FAIL, PASS, Findings, grade
from engine.data.coco_checks import bbox_problem, is_number
from engine.data.dataset import Annotation, Dataset, ImageRecord
from engine.evaluation.matching import image_results
from engine.generation.labels import MIN_SIDE
from engine.sections import ReviewSettings

IOU = 0.5  # overlap at which two boxes of a class are taken for the same object


def check_labels(
    generated: Dataset, train: Dataset | None, settings: ReviewSettings, findings: Mapping[int, Findings]
) -> None:
    """Run every gate of this module.

    Args:
        generated: split "annotations"; it may hold what `read_dataset` refuses.
        train: the real training images; None: what is judged against them stays undefined.
        findings: image id -> what was found so far; scores boxes, mean_score and label_agreement and the reasons
            bad_box, bad_label, too_many_boxes, low_score and label_disagreement are added.
    """
    limit = _most_boxes(train) * settings.box_count_factor
    sound = set()
    for image in generated.images:
        found = findings[image.id]
        faults = list(_faults(generated, image))
        for reason, words in faults:
            found.add(reason, FAIL, words)
        if not faults:
            sound.add(image.id)
        found.scores |= box_scores(generated, image.id)
        _check_count(found, limit, settings.borderline_margin)
        if "mean_score" in found.scores and settings.min_mean_score:
            mean, minimum = found.scores["mean_score"], settings.min_mean_score
            outcome = grade(mean, minimum, settings.borderline_margin)
            found.add("low_score", outcome, f"mean box score {mean:.3f} is {_where(outcome)} {minimum:.3f}")
    if train is not None:
        _check_agreement(generated, train, sound, settings, findings)


def box_scores(generated: Dataset, image_id: int) -> dict[str, float]:
    """Number of boxes, and their mean score where any has one; ignore regions (iscrowd) do not count."""
    labels = [annotation for annotation in generated.annotations_of(image_id) if not annotation.iscrowd]
    scores = [float(a.extra["score"]) for a in labels if is_number(a.extra.get("score"))]
    found = {"boxes": float(len(labels))}
    if scores:
        found["mean_score"] = sum(scores) / len(scores)
    return found


def label_agreement(generated: Dataset, train: Dataset, image_ids: Set[int]) -> dict[int, float]:
    """F1 of the labels against the boxes of the real image that was redrawn, both of a class, at IoU 0.5.

    At a low encode ratio a label that differs is most likely wrong; at a high one the drawing shows other objects, and
    labels differ because they should.

    Args:
        image_ids: the images to look at; their labels must be sound.

    Returns:
        image id -> F1 in [0, 1]; images that redraw no real one, or one without boxes (it may be unlabelled), are left
        out.
    """
    sources = {image.id: image for image in train.images}
    redrawn = [(image, redrawn_image_id(image)) for image in generated.images if image.id in image_ids]
    pairs = [(image, sources[source]) for image, source in redrawn if source in sources]
    pairs = [(image, source) for image, source in pairs if train.annotations_of(source.id)]
    if not pairs:
        return {}
    truth = Dataset(
        generated.folder,
        generated.split,
        tuple(image for image, _ in pairs),
        generated.categories,
        tuple(a for image, source in pairs for a in _scaled(train, source, image)),
    )
    detections = [
        {
            "image_id": image.id,
            "category_id": a.category_id,
            "bbox": list(a.bbox_xywh),
            "score": a.extra.get("score", 1.0),
        }
        for image, _ in pairs
        for a in generated.annotations_of(image.id)
        if not a.iscrowd
    ]
    results = image_results(truth, detections, [IOU])
    right, found, objects = np.zeros((3, len(results.image_ids)))
    for matches in results.matches["all"]:
        counted = ~matches.ignored[0]
        right += np.bincount(matches.image[counted & matches.hit[0]], minlength=len(right))
        found += np.bincount(matches.image[counted], minlength=len(right))
        objects += matches.objects
    scored = zip(results.image_ids, right, found + objects, strict=True)
    return {image_id: float(2 * hits / total) for image_id, hits, total in scored if total}


def _faults(generated: Dataset, image: ImageRecord) -> Iterator[tuple[str, str]]:
    """(reason, words) of each label that cannot be one."""
    known = {category.id for category in generated.categories}
    for annotation in generated.annotations_of(image.id):
        problem = bbox_problem(annotation.bbox_xywh, image.width, image.height)
        if problem is None and min(annotation.bbox_xywh[2:]) < MIN_SIDE:
            problem = f"bbox {list(annotation.bbox_xywh)} has a side below {MIN_SIDE:g} pixel"
        if problem:
            yield "bad_box", f"annotation {annotation.id}: {problem}"
        if annotation.category_id not in known:
            yield "bad_label", f"annotation {annotation.id}: class {annotation.category_id} is not in 'categories'"
        score = annotation.extra.get("score", 1.0)
        if not (is_number(score) and 0 <= score <= 1):
            yield "bad_label", f"annotation {annotation.id}: score {score!r} is no number from 0 to 1"


def _most_boxes(train: Dataset | None) -> int:
    """The largest number of boxes of a real training image; 0 without any."""
    return max((_boxes_of(train, image.id) for image in train.images), default=0) if train else 0


def _boxes_of(dataset: Dataset, image_id: int) -> int:
    return sum(not annotation.iscrowd for annotation in dataset.annotations_of(image_id))


def _check_count(found: Findings, limit: float, margin: float) -> None:
    if not limit:
        return
    boxes = found.scores["boxes"]
    outcome = grade(-boxes / limit, -1.0, margin)
    words = {FAIL: "more than", BORDERLINE: "close to", PASS: ""}[outcome]
    found.add("too_many_boxes", outcome, f"{boxes:.0f} boxes are {words} {limit:g}, which no real image comes near")


def _check_agreement(
    generated: Dataset, train: Dataset, sound: Set[int], settings: ReviewSettings, findings: Mapping[int, Findings]
) -> None:
    agreement, minimum = label_agreement(generated, train, sound), settings.min_label_agreement
    for image in generated.images:
        if image.id not in agreement:
            continue
        found, value = findings[image.id], agreement[image.id]
        found.scores["label_agreement"] = value
        if minimum:
            outcome, ratio = grade(value, minimum, settings.borderline_margin), encode_ratio(image)
            drawn = "" if ratio is None else f" (drawn at encode ratio {ratio:.2f})"
            words = f"F1 {value:.3f} against the source's boxes{drawn} is {_where(outcome)} {minimum:.3f}"
            found.add("label_disagreement", outcome, words)


def _scaled(train: Dataset, source: ImageRecord, image: ImageRecord) -> Iterator[Annotation]:
    """The source's annotations in the pixels of the generated image."""
    across, down = image.width / source.width, image.height / source.height
    for a in train.annotations_of(source.id):
        x, y, w, h = a.bbox_xywh
        box = (x * across, y * down, w * across, h * down)
        yield Annotation(a.id, image.id, a.category_id, box, box[2] * box[3], a.iscrowd)


def _where(outcome: str) -> str:
    return "below" if outcome == FAIL else "not far above"
