"""Datasets that controls train on: a generated dataset with one thing about it changed."""

from __future__ import annotations

import dataclasses

import numpy as np

from engine.curation.provenance import origin_image_id
from engine.data.dataset import Annotation, Dataset, ImageRecord, subset
from engine.errors import ConfigError


def without_ignore(dataset: Dataset) -> Dataset:
    """The dataset without its ignore regions: what they cover becomes background."""
    return dataclasses.replace(dataset, annotations=tuple(a for a in dataset.annotations if not a.iscrowd))


def unlabelled(dataset: Dataset) -> Dataset:
    """The dataset without any box: every image says that nothing is there."""
    return dataclasses.replace(dataset, annotations=())


def with_source_labels(real: Dataset, generated: Dataset) -> Dataset:
    """Generated images with the boxes of the real images that they were drawn from, scaled to their size; without
    those that were drawn from a picture that has no labels, or from words alone.

    Raises:
        ConfigError: none was drawn from a labelled image.
    """
    sources = {image.id: image for image in real.images}
    drawn_from = [image.id for image in generated.images if origin_image_id(image) in sources]
    generated = subset(generated, drawn_from)
    if not generated.images:
        raise ConfigError("compare.controls: source_labels needs images that were drawn from labelled ones; none was.")
    labels = [
        _moved(box, image, sources[origin_image_id(image)])
        for image in generated.images
        for box in real.annotations_of(origin_image_id(image))
    ]
    return _relabelled(generated, labels)


def permuted(dataset: Dataset, seed: int = 0) -> Dataset:
    """Every image with the boxes of another one, scaled to its size: a cycle through the images in random order."""
    order = np.random.default_rng(seed).permutation(len(dataset.images))
    labels = []
    for place, next_place in zip(order, np.roll(order, -1), strict=True):
        image, other = dataset.images[place], dataset.images[next_place]
        labels += [_moved(box, image, other) for box in dataset.annotations_of(other.id)]
    return _relabelled(dataset, labels)


def mean_score(dataset: Dataset) -> dict[int, float]:
    """Of every image's labels, by image id; 0 for an image without labels, 1 for labels without scores."""
    scores: dict[int, list[float]] = {image.id: [] for image in dataset.images}
    for annotation in dataset.annotations:
        if not annotation.iscrowd:
            scores[annotation.image_id].append(float(annotation.extra.get("score", 1.0)))
    return {image_id: float(np.mean(values)) if values else 0.0 for image_id, values in scores.items()}


def _moved(box: Annotation, image: ImageRecord, source: ImageRecord) -> Annotation:
    """A box of `source` at its place in `image`."""
    sx, sy = image.width / source.width, image.height / source.height
    x, y, w, h = box.bbox_xywh
    bbox = (x * sx, y * sy, w * sx, h * sy)
    return dataclasses.replace(box, image_id=image.id, area=box.area * sx * sy, bbox_xywh=bbox, extra={})


def _relabelled(dataset: Dataset, labels: list[Annotation]) -> Dataset:
    numbered = tuple(dataclasses.replace(label, id=i + 1) for i, label in enumerate(labels))
    return dataclasses.replace(dataset, annotations=numbered)
