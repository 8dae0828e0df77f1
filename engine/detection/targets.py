"""What detectors learn from and what they find."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SCORE_FLOOR = 0.05  # boxes below are never reported
MAX_BOXES = 100  # per image, as COCO's AP counts them


@dataclass(frozen=True)
class Target:
    """What an image shows, in its pixels: boxes (N, 4) XYXY, labels (N,) from 0, ignore regions (M, 4) XYXY, and,
    where the data has them, masks (N, H, W) bool of the same objects."""

    boxes_xyxy: Tensor
    labels: Tensor
    ignore_xyxy: Tensor
    masks: Tensor | None = None

    def to(self, device: torch.device) -> Target:
        """The same on another device."""
        masks = None if self.masks is None else self.masks.to(device)
        return Target(self.boxes_xyxy.to(device), self.labels.to(device), self.ignore_xyxy.to(device), masks)


@dataclass(frozen=True)
class Detections:
    """What was found, in pixels of the input: boxes (N, 4) XYXY, labels (N,) from 0, scores (N,), best first, and,
    from a head that draws them, masks (N, H, W) bool."""

    boxes_xyxy: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor | None = None
