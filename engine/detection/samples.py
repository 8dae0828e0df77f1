"""Training batches from dataset folders: images at the working size, boxes, masks, ignore regions, augmentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from engine.data.dataset import Annotation, Dataset, ImageRecord
from engine.data.pixels import Frame, read_pixels, to_model
from engine.data.segmentation import decode_masks, segmentation_rle
from engine.detection.targets import Target
from engine.errors import DatasetError

IGNORE = -1  # label of a region that is neither object nor background


@dataclass(frozen=True)
class Source:
    """A dataset to train on, and its share of every batch."""

    dataset: Dataset
    share: float = 1.0


@dataclass(frozen=True)
class Batch:
    """Images (B, 3, H, W) float32 in [-1, 1], their targets, the images' ids, and words for a backbone that reads
    words (empty without)."""

    pixels: Tensor
    targets: list[Target]
    image_ids: list[int]
    texts: list[str]


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

    Raises:
        DatasetError: masks are wanted and a segmentation is malformed; names the annotation.
    """

    def __init__(
        self,
        dataset: Dataset,
        frame: Frame,
        text_of: Callable[[ImageRecord], str] | None = None,
        masks: bool = False,
    ):
        masks = masks and any(annotation.extra.get("segmentation") for annotation in dataset.annotations)
        self.labels = {category.id: i for i, category in enumerate(dataset.categories)}
        self.buckets: dict[tuple[int, int], list[Sample]] = {}
        for record in dataset.images:
            size = frame.size_of(record.width, record.height)
            image = read_pixels(dataset, record, size)
            scale = (size[0] / record.width, size[1] / record.height)
            annotations = dataset.annotations_of(record.id)
            boxes = torch.tensor([scaled_xyxy(a, scale) for a in annotations], dtype=torch.float32).reshape(-1, 4)
            labels = [IGNORE if a.iscrowd else self.labels[a.category_id] for a in annotations]
            text = text_of(record) if text_of else ""
            drawn = _draw_masks(dataset, record, size) if masks else None
            sample = Sample(image, boxes, torch.tensor(labels, dtype=torch.int64), record.id, text, drawn)
            self.buckets.setdefault(size, []).append(sample)

    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator) -> list[Sample]:
        """`count` samples of one size, with replacement."""
        bucket = self.buckets[size]
        return [bucket[i] for i in torch.randint(len(bucket), (count,), generator=generator).tolist()]


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


class BatchSource:
    """Augmented batches from one or more datasets; every draw depends on (seed, step) alone, so training can resume.

    Args:
        sources: datasets with equal categories; their shares are normalised to one batch.
        text_of: the words of an image, for a backbone that reads words.
        masks: give targets the masks of their objects, for the images that have one of every object.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        frame: Frame,
        batch_size: int,
        seed: int,
        text_of: Callable[[ImageRecord], str] | None = None,
        masks: bool = False,
    ):
        self.banks = [SampleBank(source.dataset, frame, text_of, masks) for source in sources]
        self.shares = [source.share for source in sources]
        self.batch_size, self.seed = batch_size, seed
        self.counts: dict[tuple[int, int], int] = {}
        for size, bucket in self.banks[0].buckets.items():
            self.counts[size] = len(bucket)

    def batch(self, step: int, part: tuple[int, int] = (0, 1)) -> Batch:
        """The batch of a step, or of its samples every n-th from the i-th on for the part (i, n): the n parts of n
        processes together are the batch of one."""
        first, count = part
        mine = list(enumerate(self.choose(step)))[first::count]
        seed = self.seed * 1_000_003 + step
        pairs = [augmented(sample, seed * 4_099 + position) for position, sample in mine]
        pixels = to_model(torch.stack([image for image, _ in pairs]))
        samples = [sample for _, sample in mine]
        return Batch(pixels, [target for _, target in pairs], [s.image_id for s in samples], [s.text for s in samples])

    def choose(self, step: int) -> list[Sample]:
        """The samples of a step's batch, not augmented, all of one size."""
        generator = torch.Generator().manual_seed(self.seed * 7_368_787 + step)
        sizes = list(self.counts)
        weights = torch.tensor([float(self.counts[s]) for s in sizes])
        size = sizes[int(torch.multinomial(weights, 1, generator=generator))]
        chosen = []
        for bank, count in zip(self.banks, self._counts(step, size), strict=True):
            chosen += bank.draw(count, size, generator) if count else []
        return chosen

    def _counts(self, step: int, size: tuple[int, int]) -> list[int]:
        """How many samples each bank gives to this batch: shares to the nearest sample, exact on average."""
        shares = [s if size in bank.buckets else 0.0 for s, bank in zip(self.shares, self.banks, strict=True)]
        edges = np.cumsum([0.0, *shares]) / sum(shares) * self.batch_size
        # A different offset each step, so that a share of 0.1 of 16 gives 1 or 2 and 1.6 on average.
        offset = (step * 0.618033988749895) % 1.0
        ticks = np.floor(edges + offset)
        ticks[0], ticks[-1] = 0, self.batch_size
        return np.diff(ticks).astype(int).tolist()


def augmented(sample: Sample, seed: int) -> tuple[Tensor, Target]:
    """An augmented view of a sample: image uint8 (3, H, W) and its target. The seed alone decides which view; the
    CPU's global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed % 2**63)  # torch.manual_seed also walks the stack for CUDA: 1 ms
        return _augment(sample)


def _augment(sample: Sample) -> tuple[Tensor, Target]:
    """Flip, crop and zoom, and change of colour; boxes and masks follow, slivers under 2 px go."""
    height, width = sample.image.shape[-2:]
    transform = v2.Compose(
        [
            v2.RandomHorizontalFlip(0.5),
            v2.RandomResizedCrop((height, width), scale=(0.6, 1.0), ratio=(0.85, 1.18), antialias=True),
            v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
            v2.SanitizeBoundingBoxes(min_size=2.0),
        ]
    )
    boxed = tv_tensors.BoundingBoxes(sample.boxes_xyxy, format="XYXY", canvas_size=(height, width))
    shown = {"image": tv_tensors.Image(sample.image), "boxes": boxed, "labels": sample.labels}
    if sample.masks is not None:
        shown["masks"] = tv_tensors.Mask(torch.from_numpy(decode_masks(sample.masks, (width, height))))
    out = transform(shown)
    boxes, labels = out["boxes"].as_subclass(Tensor), out["labels"]
    ignore = labels == IGNORE
    masks = out["masks"].as_subclass(Tensor)[~ignore] if "masks" in out else None
    return out["image"].as_subclass(Tensor), Target(boxes[~ignore], labels[~ignore], boxes[ignore], masks)
