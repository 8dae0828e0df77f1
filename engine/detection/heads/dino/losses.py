"""What predictions cost: focal loss of the classes, L1 and generalised IoU of the boxes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou_loss, sigmoid_focal_loss

from engine.detection.heads.dino.matching import FOCAL_ALPHA, FOCAL_GAMMA, Matches, Truths
from engine.detection.ignore import in_ignore_region
from engine.detection.targets import Target

WEIGHTS = {"classification": 1.0, "l1": 5.0, "giou": 2.0}
GIOU_EPSILON = 1e-6


def layer_losses(
    logits: Tensor, boxes: Tensor, matches: Matches, truths: Truths, unjudged: Tensor, count: float
) -> dict[str, Tensor]:
    """Weighted losses of every layer, each (layers,), summed over the batch and divided by `count`.

    Args:
        logits: (layers, B, Q, classes). boxes: (layers, B, Q, 4) in shares of the image.
        unjudged: (layers, B, Q) bool, predictions that are not background even where nothing is matched to them.
    """
    layers = len(logits)
    pairs = matches.in_layers(layers)
    at = (pairs.layers, pairs.images, pairs.queries)
    with torch.autocast(boxes.device.type, enabled=False):
        wanted = torch.zeros_like(logits)
        wanted[(*at, truths.labels[pairs.rows])] = 1.0
        unjudged = unjudged.clone()
        unjudged[at] = False
        focal = sigmoid_focal_loss(logits, wanted, FOCAL_ALPHA, FOCAL_GAMMA).sum(-1).masked_fill(unjudged, 0.0)
        found, truth = boxes[at], truths.boxes[pairs.rows]
        distance = (found - truth).abs().sum(-1)
        found, truth = box_convert(found, "cxcywh", "xyxy"), box_convert(truth, "cxcywh", "xyxy")
        overlap = generalized_box_iou_loss(found, truth, eps=GIOU_EPSILON)
        zeros = torch.zeros(layers, device=boxes.device)
        sums = {
            "classification": focal.sum((1, 2)),
            "l1": zeros.index_add(0, pairs.layers, distance),
            "giou": zeros.index_add(0, pairs.layers, overlap),
        }
        return {name: WEIGHTS[name] * value / count for name, value in sums.items()}


@torch.no_grad()
def in_ignore_regions(boxes: Tensor, targets: Sequence[Target], image_size: tuple[int, int]) -> Tensor:
    """Which predictions (layers, B, Q) have the centre of their box (layers, B, Q, 4) in an ignore region and in no
    object's box. `image_size` is (height, width) in pixels."""
    height, width = image_size
    xyxy = box_convert(boxes, "cxcywh", "xyxy") * boxes.new_tensor([width, height, width, height])
    inside = torch.zeros(boxes.shape[:3], dtype=torch.bool, device=boxes.device)
    for image, target in enumerate(targets):
        if len(target.ignore_xyxy):
            places = xyxy[:, image].flatten(0, 1)
            found = in_ignore_region(places, target.ignore_xyxy, target.boxes_xyxy)
            inside[:, image] = found.view_as(inside[:, image])
    return inside
