"""Images of a dataset as tensors at the size a model works at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.data.dataset import Dataset, ImageRecord
from engine.data.images import load_image
from engine.data.sizes import working_size


@dataclass(frozen=True)
class Frame:
    """How a model sees images: short edge in pixels, and the multiple that both sides are rounded to."""

    resolution: int
    multiple: int

    def size_of(self, width: int, height: int) -> tuple[int, int]:
        """The working size (width, height) of an image of this size."""
        return working_size(width, height, self.resolution, self.multiple)


def read_pixels(dataset: Dataset, record: ImageRecord, size: tuple[int, int]) -> Tensor:
    """An image of the dataset at `size` (width, height): uint8 (3, H, W)."""
    return resize(load_image(dataset.image_path(record), (record.width, record.height)), size)


def batches_of(dataset: Dataset, frame: Frame, size: int) -> Iterator[tuple[list[ImageRecord], Tensor]]:
    """All images, up to `size` of one working size at a time: their records, and (B, 3, H, W) float32 in [-1, 1]."""
    by_size: dict[tuple[int, int], list[ImageRecord]] = {}
    for record in dataset.images:
        by_size.setdefault(frame.size_of(record.width, record.height), []).append(record)
    for working_at, records in by_size.items():
        for start in range(0, len(records), size):
            some = records[start : start + size]
            yield some, to_model(torch.stack([read_pixels(dataset, record, working_at) for record in some]))


def resize(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """An RGB image at `size` (width, height): uint8 (3, H, W). Area average when shrinking, bicubic when growing."""
    if image.size != size:
        shrink = image.width > size[0]
        image = image.resize(size, Image.Resampling.BOX if shrink else Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def to_model(pixels: Tensor) -> Tensor:
    """uint8 (..., 3, H, W) -> float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def to_uint8(image: Tensor) -> np.ndarray:
    """(3, H, W) in [-1, 1] -> (H, W, 3) uint8."""
    return ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
