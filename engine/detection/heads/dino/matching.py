"""Which prediction is held to which object: the assignment of least cost (Carion et al. 2020, arXiv 2005.12872)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from engine.detection.targets import Target

CLASS_COST, L1_COST, GIOU_COST = 2.0, 5.0, 2.0
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0


@dataclass(frozen=True)
class Truths:
    """All objects of a batch, one row each: boxes (N, 4) as (x centre, y centre, width, height) in shares of the image,
    labels (N,), images (N,), slots (N,) = place among its image's objects, and counts of each image."""

    boxes: Tensor
    labels: Tensor
    images: Tensor
    slots: Tensor
    counts: list[int]

    @classmethod
    def of(cls, targets: Sequence[Target], image_size: tuple[int, int]) -> Truths:
        """From targets in pixels of `image_size` (height, width)."""
        height, width = image_size
        xyxy = torch.cat([t.boxes_xyxy for t in targets]).float()
        extent = xyxy.new_tensor([width, height, width, height])
        counts = [len(t.labels) for t in targets]
        images = torch.cat([torch.full_like(t.labels, i) for i, t in enumerate(targets)])
        slots = torch.cat([torch.arange(n, device=xyxy.device) for n in counts])
        labels = torch.cat([t.labels for t in targets])
        return cls(box_convert(xyxy / extent, "xyxy", "cxcywh"), labels, images, slots, counts)


@dataclass(frozen=True)
class Matches:
    """Pairs: query (M,) of image (M,) is held to row (M,) of the truths; `layers` (M,), or None: in every layer."""

    images: Tensor
    queries: Tensor
    rows: Tensor
    layers: Tensor | None = None

    def in_layers(self, count: int) -> Matches:
        """With the layer of each pair written out."""
        if self.layers is not None:
            return self
        layers = torch.arange(count, device=self.rows.device).repeat_interleave(len(self.rows))
        return Matches(self.images.repeat(count), self.queries.repeat(count), self.rows.repeat(count), layers)


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, truths: Truths) -> Matches:
    """One query for each object, in each layer for itself: Hungarian assignment of focal class cost 2, L1 5, GIoU 2.

    Args:
        logits: (layers, B, Q, classes). boxes: (layers, B, Q, 4) in shares of the image.
    """
    layers, _, queries, _ = logits.shape
    costs = []
    for image, rows in enumerate(torch.arange(len(truths.labels), device=boxes.device).split(truths.counts)):
        cost = _costs(logits[:, image].flatten(0, 1), boxes[:, image].flatten(0, 1), truths, rows)
        costs.append(cost.view(layers, queries, -1).flatten())
    on_cpu = torch.cat(costs).cpu().numpy()  # one transfer for the batch
    pairs, start, first = [], 0, 0
    for image, count in enumerate(truths.counts):
        size = queries * count
        for layer in range(layers):
            chosen, objects = linear_sum_assignment(on_cpu[start : start + size].reshape(queries, count))
            pairs += [(layer, image, q, first + n) for q, n in zip(chosen.tolist(), objects.tolist(), strict=True)]
            start += size
        first += count
    table = torch.tensor(pairs, dtype=torch.int64, device=boxes.device).reshape(-1, 4)
    return Matches(table[:, 1], table[:, 2], table[:, 3], table[:, 0])


def _costs(logits: Tensor, boxes: Tensor, truths: Truths, rows: Tensor) -> Tensor:
    """What it costs that a prediction (A,) is held to an object (rows,): (A, rows) float32."""
    with torch.autocast(boxes.device.type, enabled=False):
        truth = truths.boxes[rows]
        shares = logits.float().sigmoid()[:, truths.labels[rows]]
        rejected = (1 - FOCAL_ALPHA) * shares**FOCAL_GAMMA * -(1 - shares + 1e-8).log()
        accepted = FOCAL_ALPHA * (1 - shares) ** FOCAL_GAMMA * -(shares + 1e-8).log()
        distance = torch.cdist(boxes.float(), truth, p=1)
        overlap = generalized_box_iou(
            box_convert(boxes.float(), "cxcywh", "xyxy"), box_convert(truth, "cxcywh", "xyxy")
        )
        return CLASS_COST * (accepted - rejected) + L1_COST * distance - GIOU_COST * overlap
