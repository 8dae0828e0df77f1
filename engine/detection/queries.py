"""From a detection transformer's queries to detections."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_convert, clip_boxes_to_image

from engine.detection.targets import MAX_BOXES, SCORE_FLOOR, Detections


@torch.no_grad()
def best_of_queries(logits: Tensor, boxes: Tensor, frame: Tensor, image_size: tuple[int, int]) -> list[Detections]:
    """The best pairs of query and class of each image, clipped to it; no suppression is needed.

    Args:
        logits: (B, queries, classes), of independent classes. boxes: (B, queries, 4) as (x centre, y centre, width,
            height) in shares of `frame`, (4,): width, height, width, height in pixels.
        image_size: (height, width) in pixels.
    """
    classes = logits.shape[-1]
    scores, picked = logits.float().sigmoid().flatten(1).sort(descending=True, stable=True)
    corners = box_convert(boxes.float(), "cxcywh", "xyxy") * frame
    detections = []
    for s, p, b in zip(scores[:, :MAX_BOXES], picked[:, :MAX_BOXES], corners, strict=True):
        b = clip_boxes_to_image(b[p // classes], image_size)
        kept = (s >= SCORE_FLOOR) & (b[:, 2:] > b[:, :2]).all(dim=1)
        detections.append(Detections(b[kept], (p % classes)[kept], s[kept]))
    return detections
