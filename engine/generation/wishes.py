"""What a user wishes of a run: how many images, and more of some classes and sizes.

A source's weight is that of the heaviest of its objects, by class and size, and the number of images drawn from it is
proportional to it (the rule of repeat factor sampling, arXiv 1908.03195). So a class of weight 3 gets three times the
objects that it would get beside classes of weight 1, as far as it does not share its images with them: whatever else
is in a picture comes along. A picture without objects has weight 1.

What a reviewer asked for in the App (`engine.curation.requests`) multiplies the weight of the source itself.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine.config import named_weight
from engine.curation.requests import LESS, MORE, read_requests, wishes_by_source
from engine.errors import ConfigError, DatasetError
from engine.generation.weakness import by_weak_classes, by_weak_sizes
from engine.sections import SIZES, GenerationSettings

if TYPE_CHECKING:
    from engine.data.dataset import Dataset, ImageRecord

MOST_IMAGES = 100_000_000  # a plan of so many is made in 12 GB of memory
LARGEST = 1e15  # sums of more lose the weights of 1
REQUESTED = {MORE: 3.0, LESS: 1 / 3}
HIGHEST = 10.0  # of a weight that is derived: a class with one picture must not fill the dataset with its variants
HIGHEST_OF_SIZE = 3.0  # it comes on top of that of the class
_SETTINGS = "generation.class_weights and size_weights"


def number_of_images(images: int | None, variants: int, sources: int) -> int:
    """How many images are wanted: so many, or where None is given, `variants` of each source.

    Raises:
        ConfigError: none or too many are wanted, or more than `variants` of all sources.
    """
    if images is None and not variants:
        raise ConfigError("How many images? Give --images N, or --set generation.variants_per_image=V.")
    images = variants * sources if images is None else images
    if images < 1:
        raise ConfigError(f"The number of images must be at least 1, not {images}.")
    if images > MOST_IMAGES:
        raise ConfigError(f"{images} images are more than one run plans ({MOST_IMAGES}). Make several, by --seed.")
    if variants and images > variants * sources:
        raise ConfigError(
            f"{images} images are more than generation.variants_per_image={variants} of {sources} sources "
            f"({variants * sources}). Leave the number of images out, or ask for more variants."
        )
    return images


def class_weights(dataset: Dataset, settings: GenerationSettings) -> dict[int, float]:
    """The weight of every class, by category id: what `class_weights` says, times what `balance` and `weak_classes` do.

    Raises:
        ConfigError: a weight for a class that the dataset does not have (its classes are listed).
        DatasetError: the results of `weak_classes` are not usable, of other classes, or without validation scores.
    """
    names = {category.name: category.id for category in dataset.categories}
    weights = dict.fromkeys(names.values(), 1.0)
    for text in settings.class_weights:
        name, weight = named_weight(text)
        if name not in names:
            raise ConfigError(
                f"generation.class_weights: {dataset.folder} has no class '{name}'. Its classes: {', '.join(names)}."
            )
        weights[names[name]] = weight
    factors = [_by_rarity(dataset)] if settings.balance == "rarity" else []
    if settings.weak_classes:
        factors.append(by_weak_classes(names, Path(settings.weak_classes), HIGHEST))
    return {i: math.prod((weight, *(factor.get(i, 1.0) for factor in factors))) for i, weight in weights.items()}


def size_weights(settings: GenerationSettings) -> dict[str, float]:
    """The weight of every size of objects: what `size_weights` says, times what `weak_sizes` does.

    Raises:
        DatasetError: the results of `weak_sizes` are not usable, or without validation scores.
    """
    weights = dict.fromkeys(SIZES, 1.0) | dict(named_weight(text, "size_weights") for text in settings.size_weights)
    if not settings.weak_sizes:
        return weights
    found = by_weak_sizes(Path(settings.weak_sizes), HIGHEST_OF_SIZE)
    return {size: weight * found.get(size, 1.0) for size, weight in weights.items()}


def sizes_as_words(by_size: Mapping[str, float]) -> list[str]:
    """Weights other than 1 as `size_weights` has them, from small to large."""
    return [f"{size}={by_size[size]!r}" for size in SIZES if by_size[size] != 1]


def weights_as_words(dataset: Dataset, by_class: Mapping[int, float]) -> list[str]:
    """Weights other than 1 as `class_weights` has them, in the order of the categories."""
    return [f"{c.name}={by_class[c.id]!r}" for c in dataset.categories if by_class[c.id] != 1]


def requested_weights(dataset: Dataset, settings: GenerationSettings) -> dict[int, float]:
    """What `requests` multiplies the weights of sources by, by image id; sources that nothing was asked about are left
    out.

    Raises:
        DatasetError: the file is missing or broken, or is about images that the dataset does not have.
    """
    if not settings.requests:
        return {}
    wishes = wishes_by_source(read_requests(Path(settings.requests)))
    unknown = sorted(set(wishes) - {image.id for image in dataset.images})
    if unknown:
        raise DatasetError(
            f"generation.requests: {settings.requests} asks about {len(unknown)} source images that {dataset.folder} "
            f"does not have, the first: {', '.join(map(str, unknown[:10]))}. Give requests made on images that were "
            "drawn from this dataset (and generation.unlabelled, if they were drawn with it)."
        )
    return {source: REQUESTED[wish] for source, wish in wishes.items()}


def source_weights(
    dataset: Dataset,
    images: Sequence[ImageRecord],
    by_class: Mapping[int, float],
    by_source: Mapping[int, float] | None = None,
    by_size: Mapping[str, float] | None = None,
) -> np.ndarray:
    """(S,) weight of each image; a source that holds only objects of weight 0 has 0.

    Args:
        by_class: see `class_weights`. by_source: see `requested_weights`. by_size: see `size_weights`.

    Raises:
        ConfigError: no image is left, or a weight is too large.
    """
    weights = np.ones(len(images))
    by_size = by_size or dict.fromkeys(SIZES, 1.0)
    if {*by_class.values(), *by_size.values()} - {1.0}:
        for place, image in enumerate(images):
            boxes = [box for box in dataset.annotations_of(image.id) if not box.iscrowd]
            weights[place] = max((by_class[box.category_id] * by_size[_size(box.area)] for box in boxes), default=1.0)
    if by_source:
        weights *= [by_source.get(image.id, 1.0) for image in images]
    if not weights.any():
        raise ConfigError(f"{_SETTINGS} leave no image of {dataset.folder}: every weight is 0.")
    if weights.max() > LARGEST:
        raise ConfigError(f"{_SETTINGS}: a weight of {weights.max():g} is too large to reckon with.")
    return weights


def _by_rarity(dataset: Dataset) -> dict[int, float]:
    """sqrt(pictures with the most frequent class / pictures with this one); a class without objects has none."""
    pairs = {(box.image_id, box.category_id) for box in dataset.annotations if not box.iscrowd}
    pictures = Counter(category_id for _, category_id in pairs)
    most = max(pictures.values(), default=0)
    return {i: round(min(math.sqrt(most / count), HIGHEST), 4) for i, count in pictures.items()}


def _size(area: float) -> str:
    return SIZES[(area >= 32**2) + (area > 96**2)]
