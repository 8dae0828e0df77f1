"""The pixels of labelled objects: by their masks where a dataset has some, else by their boxes."""

from __future__ import annotations

import numpy as np

from engine.data.records import Annotation, ImageRecord
from engine.data.segmentation import decode_masks, segmentation_rle


def mask_of(annotation: Annotation, record: ImageRecord, size: tuple[int, int] | None = None) -> np.ndarray:
    """An object's pixels (H, W) bool; the whole box of a crowd, and where no segmentation can be read.

    Args:
        size: (width, height) in pixels at which it is drawn; None for the picture's own.
    """
    picture = (record.width, record.height)
    size = size or picture
    shape = annotation.extra.get("segmentation")
    if shape and not annotation.iscrowd:
        try:
            mask = decode_masks([segmentation_rle(shape, picture, size)], size)[0]
        except ValueError:
            mask = np.zeros(0, dtype=bool)
        if mask.any():
            return mask
    mask = np.zeros((size[1], size[0]), dtype=bool)
    x0, y0, x1, y1 = corners_of(scaled(annotation.bbox_xywh, picture, size), size)
    mask[y0:y1, x0:x1] = True
    return mask


def scaled(
    bbox_xywh: tuple[float, float, float, float], picture: tuple[int, int], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """A box of a picture of (width, height) pixels in the picture drawn at another size, not beyond its edges."""
    if picture == size:
        return bbox_xywh
    x, y, w, h = bbox_xywh
    across, down = size[0] / picture[0], size[1] / picture[1]
    left, top = x * across, y * down
    return left, top, min(w * across, size[0] - left), min(h * down, size[1] - top)


def corners_of(bbox_xywh: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Whole pixels around a box, inside a picture of (width, height)."""
    x, y, w, h = bbox_xywh
    x0, y0 = max(0, int(np.floor(x))), max(0, int(np.floor(y)))
    return x0, y0, min(size[0], int(np.ceil(x + w))), min(size[1], int(np.ceil(y + h)))
