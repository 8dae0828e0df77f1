"""A dataset's images in memory at the working size, and what they show."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.data.dataset import Annotation, Dataset, ImageRecord
from engine.data.pixels import Frame, read_pixels
from engine.data.segmentation import segmentation_rle
from engine.errors import DatasetError

IGNORE = -1  # label of a region that is neither object nor background


@dataclass(frozen=True)
class Sample:
    """A stored image uint8 (3, H, W), its boxes (N, 4) XYXY, labels (N,) with IGNORE for ignore regions, words, and
    the boxes' masks as RLEs of (H, W), or None where an object has none."""

    image: Tensor
    boxes_xyxy: Tensor
    labels: Tensor
    image_id: int
    text: str
    masks: list[dict] | None = None


class SampleBank:
    """A dataset's images, decoded once at the working size and kept in memory as uint8, and their boxes.

    Images of one working size form a bucket, because a batch has one shape.

    Args:
        sizes: working sizes (width, height) to choose from: an image whose own is none of them takes the one nearest
            to its aspect. None: every image its own.
        weights: of each image's id, how often it is drawn in relation to others; those of weight 0 are not read. None:
            all alike.

    Raises:
        DatasetError: masks are wanted and a segmentation is malformed (names the annotation), or the weights leave out
            an image, are no numbers from 0, or leave nothing to draw.
    """

    def __init__(
        self,
        dataset: Dataset,
        frame: Frame,
        text_of: Callable[[ImageRecord], str] | None = None,
        masks: bool = False,
        weights: Mapping[int, float] | None = None,
        sizes: Collection[tuple[int, int]] | None = None,
    ):
        records = dataset.images if weights is None else _of_weight(dataset, weights)
        masks = masks and any(annotation.extra.get("segmentation") for annotation in dataset.annotations)
        self.labels = {category.id: i for i, category in enumerate(dataset.categories)}
        self.buckets: dict[tuple[int, int], list[Sample]] = {}
        for record in records:
            size = frame.size_of(record.width, record.height)
            if sizes is not None and size not in sizes:
                size = _nearest(record.width / record.height, sizes)
            image = read_pixels(dataset, record, size)
            scale = (size[0] / record.width, size[1] / record.height)
            annotations = dataset.annotations_of(record.id)
            boxes = torch.tensor([scaled_xyxy(a, scale) for a in annotations], dtype=torch.float32).reshape(-1, 4)
            labels = [IGNORE if a.iscrowd else self.labels[a.category_id] for a in annotations]
            text = text_of(record) if text_of else ""
            drawn = _draw_masks(dataset, record, size) if masks else None
            sample = Sample(image, boxes, torch.tensor(labels, dtype=torch.int64), record.id, text, drawn)
            self.buckets.setdefault(size, []).append(sample)
        self.weights = None
        if weights is not None:
            of = {size: [float(weights[s.image_id]) for s in bucket] for size, bucket in self.buckets.items()}
            self.weights = {size: torch.tensor(values, dtype=torch.float64) for size, values in of.items()}

    def weight(self, size: tuple[int, int]) -> float:
        """Of all samples of one size together: their number, where all weigh alike."""
        return float(len(self.buckets[size]) if self.weights is None else self.weights[size].sum())

    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator) -> list[Sample]:
        """`count` samples of one size, with replacement."""
        bucket = self.buckets[size]
        if self.weights is None:
            places = torch.randint(len(bucket), (count,), generator=generator)
        else:
            places = torch.multinomial(self.weights[size], count, replacement=True, generator=generator)
        return [bucket[i] for i in places.tolist()]


def _nearest(aspect: float, sizes: Collection[tuple[int, int]]) -> tuple[int, int]:
    return min(sorted(sizes), key=lambda size: abs(math.log(size[0] / size[1] / aspect)))


def _of_weight(dataset: Dataset, weights: Mapping[int, float]) -> list[ImageRecord]:
    """The images whose weight is above 0."""
    where = dataset.folder / f"{dataset.split}.json"
    for record in dataset.images:
        weight = weights.get(record.id)
        if weight is None or not 0 <= weight < math.inf:
            raise DatasetError(
                f"{where}: the sampling weight of image {record.id} ({record.file_name}) is {weight}. Give every image "
                "a number from 0."
            )
    kept = [record for record in dataset.images if weights[record.id] > 0]
    if not kept:
        raise DatasetError(f"{where}: no image has a sampling weight above 0, so there is none to train on.")
    return kept


def scaled_xyxy(annotation: Annotation, scale: tuple[float, float]) -> tuple[float, float, float, float]:
    """The annotation's box as XYXY after scaling by (x, y)."""
    x, y, w, h = annotation.bbox_xywh
    return (x * scale[0], y * scale[1], (x + w) * scale[0], (y + h) * scale[1])


def _draw_masks(dataset: Dataset, record: ImageRecord, size: tuple[int, int]) -> list[dict] | None:
    """RLEs of an image's annotations at `size`, in their order; None when an object has no segmentation, since a mask
    missing among others would teach that the object has no pixels. Crowds need none: empty there."""
    empty = {"size": [record.height, record.width], "counts": [record.height * record.width]}
    drawn = []
    for annotation in dataset.annotations_of(record.id):
        shape = empty if annotation.iscrowd else annotation.extra.get("segmentation")
        try:
            drawn.append(segmentation_rle(shape, (record.width, record.height), size))
        except ValueError as problem:
            raise DatasetError(
                f"{dataset.folder / dataset.split}.json annotation {annotation.id} (image {record.id}, "
                f"{record.file_name}): no mask can be read from its segmentation: {problem}. Correct it, or remove "
                "the key 'segmentation' there to train without the image's masks."
            ) from None
    return None if None in drawn else drawn
