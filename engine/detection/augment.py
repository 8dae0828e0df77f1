"""Random views of training samples: none, standard, strong.

None of them rotates or shears: the upright box around a turned box is larger than its object, 8 % a side at 5 degrees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_area, clip_boxes_to_image
from torchvision.transforms import v2

from engine.data.segmentation import decode_masks
from engine.detection.bank import IGNORE, Sample
from engine.detection.targets import Target

SLIVER = 2.0  # pixels: boxes with a shorter side teach nothing
VISIBLE = 0.25  # strong: an object of which a smaller share is left becomes an ignore region
MOSAIC, MIXUP = 0.5, 0.15  # strong: share of the images that are made of four, or blended of two
GREY = 114  # around an image that was made smaller

View = tuple[Tensor, Target]


def augmented(sample: Sample, seed: int, augment: str = "standard", others: Sequence[Sample] = ()) -> View:
    """A view of a sample: image uint8 (3, H, W) and its target. The seed alone decides which view; the CPU's global
    random state is left as it was.

    Args:
        augment: a key of `VIEWS`.
        others: samples of the same size that mosaic and mixup of "strong" may take; none: it does without them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed % 2**63)  # torch.manual_seed also walks the stack for CUDA: 1 ms
        return VIEWS[augment](sample, others)


def _plain(sample: Sample, others: Sequence[Sample]) -> View:
    return _view(sample, v2.SanitizeBoundingBoxes(min_size=SLIVER))


def _standard(sample: Sample, others: Sequence[Sample]) -> View:
    """Flip, crop and zoom, and change of colour; boxes and masks follow, slivers go."""
    height, width = sample.image.shape[-2:]
    transform = v2.Compose(
        [
            v2.RandomHorizontalFlip(0.5),
            v2.RandomResizedCrop((height, width), scale=(0.6, 1.0), ratio=(0.85, 1.18), antialias=True),
            v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
            v2.SanitizeBoundingBoxes(min_size=SLIVER),
        ]
    )
    return _view(sample, transform)


def _view(sample: Sample, transform: v2.Transform) -> View:
    height, width = sample.image.shape[-2:]
    boxed = tv_tensors.BoundingBoxes(sample.boxes_xyxy, format="XYXY", canvas_size=(height, width))
    shown = {"image": tv_tensors.Image(sample.image), "boxes": boxed, "labels": sample.labels}
    if sample.masks is not None:
        shown["masks"] = tv_tensors.Mask(torch.from_numpy(decode_masks(sample.masks, (width, height))))
    out = transform(shown)
    boxes, labels = out["boxes"].as_subclass(Tensor), out["labels"]
    ignore = labels == IGNORE
    masks = out["masks"].as_subclass(Tensor)[~ignore] if "masks" in out else None
    return out["image"].as_subclass(Tensor), Target(boxes[~ignore], labels[~ignore], boxes[ignore], masks)


def _strong(sample: Sample, others: Sequence[Sample]) -> View:
    """Strong photometric distortion and change of scale (half to about twice), mosaic of four images (Bochkovskiy et
    al. 2020) and mixup (Zhang et al. 2019, as YOLOX blends boxes). Gives no masks."""
    image, boxes, labels = _distorted(sample, others)
    if others and torch.rand(()) < MIXUP:
        other, more_boxes, more_labels = _distorted(_any_of(others), others)
        share = 0.4 + 0.2 * torch.rand(())
        image = (share * image + (1 - share) * other).round().to(torch.uint8)
        boxes, labels = torch.cat([boxes, more_boxes]), torch.cat([labels, more_labels])
    ignore = labels == IGNORE
    return image, Target(boxes[~ignore], labels[~ignore], boxes[ignore])


def _distorted(sample: Sample, others: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
    """Image, boxes XYXY inside it, and labels of a strong view before mixup."""
    size = height, width = sample.image.shape[-2:]
    if others and torch.rand(()) < MOSAIC:
        canvas = _mosaic([sample, *(_any_of(others) for _ in range(3))])
        geometry = v2.RandomResizedCrop(size, scale=(0.25, 1.0), ratio=(0.8, 1.25), antialias=True)
    else:
        canvas = _coloured(sample)
        geometry = v2.Compose(
            [
                v2.RandomZoomOut(fill=GREY, side_range=(1.0, 2.0), p=0.3),
                v2.RandomResizedCrop(size, scale=(0.3, 1.0), ratio=(0.8, 1.25), antialias=True),
            ]
        )
    out = geometry(canvas)
    whole, labels = out["boxes"].as_subclass(Tensor), out["labels"]
    boxes = clip_boxes_to_image(whole, size)
    hidden = box_area(boxes) < VISIBLE * box_area(whole)
    kept = (boxes[:, 2:] - boxes[:, :2] >= SLIVER).all(1)
    return out["image"].as_subclass(Tensor), boxes[kept], labels.masked_fill(hidden, IGNORE)[kept]


def _coloured(sample: Sample) -> dict:
    """Flipped and distorted in colour. Boxes are not cut off at the border, so that what is left of them shows."""
    boxes = tv_tensors.BoundingBoxes(
        sample.boxes_xyxy, format="XYXY", canvas_size=tuple(sample.image.shape[-2:]), clamping_mode=None
    )
    # Not RandomPhotometricDistort, which also swaps channels: colour tells many classes apart.
    distort = v2.ColorJitter(brightness=0.3, contrast=0.4, saturation=0.4, hue=0.03)
    transform = v2.Compose([v2.RandomHorizontalFlip(0.5), v2.RandomApply([distort], 0.8)])
    return transform({"image": tv_tensors.Image(sample.image), "boxes": boxes, "labels": sample.labels})


def _mosaic(four: Sequence[Sample]) -> dict:
    """Four images of one size as one of twice the sides."""
    height, width = four[0].image.shape[-2:]
    parts = [_coloured(sample) for sample in four]
    a, b, c, d = (part["image"] for part in parts)
    corners = torch.tensor([[0, 0], [width, 0], [0, height], [width, height]], dtype=torch.float32).repeat(1, 2)
    boxes = torch.cat([part["boxes"] + corner for part, corner in zip(parts, corners, strict=True)])
    size = (2 * height, 2 * width)
    return {
        "image": tv_tensors.Image(torch.cat([torch.cat([a, b], 2), torch.cat([c, d], 2)], 1)),
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size, clamping_mode=None),
        "labels": torch.cat([part["labels"] for part in parts]),
    }


def _any_of(samples: Sequence[Sample]) -> Sample:
    return samples[int(torch.randint(len(samples), ()))]


VIEWS: dict[str, Callable[[Sample, Sequence[Sample]], View]] = {
    "none": _plain,
    "standard": _standard,
    "strong": _strong,
}
