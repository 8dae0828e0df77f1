"""Contrastive denoising: true boxes with noise as extra queries of the training, to be put right or rejected."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.detection.heads.dino.matching import Matches, Truths
from engine.detection.heads.dino.positions import to_logits
from engine.sections import DetrSettings


@dataclass(frozen=True)
class DenoisingQueries:
    """Extra queries that stand before the others: anchors (B, P, 4) in logits, content (B, P, width), groups of equal
    size, and which of them are to give which object."""

    anchors: Tensor
    content: Tensor
    groups: int
    matches: Matches

    @property
    def count(self) -> int:
        return self.anchors.shape[1]

    def hidden(self, others: int) -> Tensor:
        """Who may not see whom, (P + others) square: the other queries see no denoising query, which would tell them
        the truth, and a group sees no other group."""
        total = self.count + others
        group = torch.full((total,), -1, device=self.anchors.device)
        group[: self.count] = torch.arange(self.count, device=group.device) // max(1, self.count // max(1, self.groups))
        return (group[None, :] >= 0) & (group[:, None] != group[None, :])


def denoising_queries(truths: Truths, labels_of: nn.Embedding, settings: DetrSettings) -> DenoisingQueries:
    """Draw them from torch's random state.

    Every group holds each object twice: a positive, whose box moves by less than half its extent (times `box_noise`)
    and whose label is another with probability `label_noise` / 2, and behind all of these a negative, whose box moves
    by half to all of it. Objects of an image that has fewer than the fullest are stood for by empty queries.

    Args:
        labels_of: the content of a query that stands for a class.
        settings: `denoising_queries` positives, of all groups together, in an image; at least one group.
    """
    device, fullest = truths.boxes.device, max(truths.counts, default=0)
    groups = max(1, settings.denoising_queries // fullest) if settings.denoising_queries and fullest else 0
    copies = 2 * groups  # even: positives, odd: negatives
    negative = (torch.arange(copies, device=device) % 2).repeat_interleave(len(truths.labels))
    boxes = _noisy_boxes(truths.boxes.repeat(copies, 1), negative, settings.box_noise)
    labels = _noisy_labels(truths.labels.repeat(copies), labels_of.num_embeddings, settings.label_noise)
    images = truths.images.repeat(copies)
    slots = (truths.slots + fullest * torch.arange(copies, device=device)[:, None]).flatten()

    anchors = torch.zeros(len(truths.counts), copies * fullest, 4, device=device)
    anchors[images, slots] = to_logits(boxes)
    content = torch.zeros(*anchors.shape[:2], labels_of.embedding_dim, device=device)
    content[images, slots] = labels_of(labels).float()
    positive = negative == 0
    rows = torch.arange(len(truths.labels), device=device).repeat(copies)
    return DenoisingQueries(anchors, content, groups, Matches(images[positive], slots[positive], rows[positive]))


def _noisy_boxes(boxes: Tensor, negative: Tensor, noise: float) -> Tensor:
    """Each corner of (x, y, w, h) boxes moved by up to half the box's extent, a negative's by half to all of it."""
    if noise == 0:
        return boxes
    half = boxes[:, 2:] / 2
    corners = torch.cat((boxes[:, :2] - half, boxes[:, :2] + half), dim=1)
    sign = torch.randint_like(corners, 2) * 2 - 1
    moved = corners + sign * (torch.rand_like(corners) + negative[:, None]) * half.repeat(1, 2) * noise
    low, high = moved.clamp(0, 1).split(2, dim=1)
    return torch.cat(((low + high) / 2, high - low), dim=1)


def _noisy_labels(labels: Tensor, num_classes: int, noise: float) -> Tensor:
    """Half of `noise` of the labels replaced by a random one."""
    if noise == 0:
        return labels
    changed = torch.rand(labels.shape, device=labels.device) < noise / 2
    return torch.where(changed, torch.randint_like(labels, num_classes), labels)
