"""Multi-scale deformable attention (Zhu et al. 2020, arXiv 2010.04159), and what stands around it in every layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

Shapes = Sequence[tuple[int, int]]  # (height, width) of each level, finest first


class DeformableAttention(nn.Module):
    """Each query reads a few learned points around its reference on every level.

    The sampling itself is transformers' (its own module of the whole attention would compute the points in bfloat16
    under autocast, where a point far from its reference moves by a tenth of a cell).
    """

    def __init__(self, width: int, levels: int, heads: int, points: int):
        super().__init__()
        self.levels, self.heads, self.points = levels, heads, points
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2)
        self.attention_weights = nn.Linear(width, heads * levels * points)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        self.sample = MultiScaleDeformableAttention()

    def reset(self) -> None:
        """Start by reading points in a ring of directions, one for each head, all alike."""
        turns = torch.arange(self.heads) * (2 * math.pi / self.heads)
        rays = torch.stack((turns.cos(), turns.sin()), dim=-1)
        rays = rays / rays.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, self.points + 1)
        offsets = (rays[:, None, None, :] * steps[None, None, :, None]).expand(-1, self.levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        for tensor in (self.sampling_offsets.weight, self.attention_weights.weight, self.attention_weights.bias):
            nn.init.zeros_(tensor)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, queries: Tensor, references: Tensor, memory: Tensor, shapes: Shapes) -> Tensor:
        """Read `memory` (B, cells of all levels, width) at the references.

        Args:
            queries: (B, Q, width).
            references: float32 in shares of the image, points (B or 1, Q, 2), whose offsets count in cells, or boxes
                (B, Q, 4), whose offsets count in half extents of the box.

        Returns:
            (B, Q, width).
        """
        batch, count, width = queries.shape
        split = (batch, count, self.heads, self.levels, self.points)
        values = self.value_proj(memory).float().view(batch, -1, self.heads, width // self.heads)
        offsets = self.sampling_offsets(queries).float().view(*split, 2)
        weights = self.attention_weights(queries).float().view(*split[:3], -1).softmax(-1).view(split)
        centres = references[:, :, None, None, None, :2]
        if references.shape[-1] == 2:
            scale = 1 / torch.tensor([(w, h) for h, w in shapes], device=queries.device)[:, None]
        else:
            scale = references[:, :, None, None, None, 2:] * (0.5 / self.points)
        with torch.autocast(queries.device.type, enabled=False):
            read = self.sample(values, None, list(shapes), None, centres + offsets * scale, weights, 0)
        return self.output_proj(read)


class FeedForward(nn.Module):
    """Two linear layers around a ReLU, added to their input and normalised."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> the same shape."""
        return self.norm(x + self.linear2(self.linear1(x).relu()))


class Mlp(nn.Module):
    """Linear layers with ReLUs between them; width `hidden` inside."""

    def __init__(self, inputs: int, hidden: int, outputs: int, depth: int):
        super().__init__()
        sizes = [inputs, *[hidden] * (depth - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)
