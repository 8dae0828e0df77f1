"""The deformable encoder: the cells of all levels read one another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engine.detection.heads.dino.attention import DeformableAttention, FeedForward, Shapes
from engine.detection.heads.dino.positions import cell_centres, cell_sines
from engine.sections import DetrSettings


class EncoderLayer(nn.Module):
    """Deformable self-attention of the cells, then a feed-forward."""

    def __init__(self, width: int, levels: int, settings: DetrSettings):
        super().__init__()
        self.attention = DeformableAttention(width, levels, settings.attention_heads, settings.sampling_points)
        self.norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, settings.feedforward)

    def forward(self, cells: Tensor, positions: Tensor, centres: Tensor, shapes: Shapes) -> Tensor:
        """cells (B, S, width), positions (S, width), centres (1, S, 2) -> (B, S, width)."""
        return self.feed_forward(self.norm(cells + self.attention(cells + positions, centres, cells, shapes)))


class Encoder(nn.Module):
    """Levels -> one memory."""

    def __init__(self, width: int, levels: int, settings: DetrSettings):
        super().__init__()
        self.level_embed = nn.Parameter(torch.empty(levels, width))
        self.layers = nn.ModuleList(EncoderLayer(width, levels, settings) for _ in range(settings.encoder_layers))

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, Shapes]:
        """Levels (B, width, h_i, w_i) -> memory (B, S, width) float32, cells row by row, and the levels' shapes."""
        shapes = [(level.shape[-2], level.shape[-1]) for level in levels]
        cells = torch.cat([level.float().flatten(2).transpose(1, 2) for level in levels], dim=1)
        sines = cell_sines(shapes, cells.shape[-1], cells.device)
        positions = torch.cat([s + embed for s, embed in zip(sines, self.level_embed, strict=True)])
        centres = torch.cat(cell_centres(shapes, cells.device))[None]
        for layer in self.layers:
            cells = layer(cells, positions, centres, shapes)
        return cells, shapes
