"""Ignore regions: places that teach a detector neither that something is there nor that nothing is."""

from __future__ import annotations

import torch
from torch import Tensor


def in_ignore_region(places_xyxy: Tensor, ignore_xyxy: Tensor, objects_xyxy: Tensor) -> Tensor:
    """Which places (A, 4), anchors or proposals, have their centre in an ignore region (M, 4) and in no object's box
    (N, 4): (A,) bool. All boxes are XYXY in one frame."""
    centres = (places_xyxy[:, :2] + places_xyxy[:, 2:]) / 2

    def inside(boxes: Tensor) -> Tensor:
        if not len(boxes):
            return torch.zeros(len(centres), dtype=torch.bool, device=centres.device)
        return ((centres[:, None] >= boxes[:, :2]) & (centres[:, None] <= boxes[:, 2:])).all(-1).any(-1)

    return inside(ignore_xyxy) & ~inside(objects_xyxy)
