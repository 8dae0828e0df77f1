"""Where things are, as the transformer sees it: sines of positions, and boxes in logits.

Boxes inside the transformer are (x centre, y centre, width, height) in shares of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

CELL_TEMPERATURE = 20  # of the sines of the encoder's cells: DINO's setting
BOX_TEMPERATURE = 10_000  # of the sines of the decoder's boxes
LOGIT_EPSILON = 1e-3  # boxes are kept so far from 0 and 1 when they become logits


def sine(values: Tensor, channels: int, temperature: float) -> Tensor:
    """Interleaved sines and cosines of (..., K) shares of the image: (..., K * channels), `channels` each value."""
    exponents = torch.arange(0, channels, 2, dtype=torch.float32, device=values.device) / channels
    angles = values.float()[..., None] * (2 * math.pi) / temperature**exponents
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-3)


def cell_sines(shapes: Sequence[tuple[int, int]], width: int, device: torch.device) -> list[Tensor]:
    """Position embedding of the cells of levels of (height, width): a (cells, `width`) for each level."""
    sines = []
    for rows, columns in shapes:
        # Cells count from 1 and the last stands at 1: what reference weights have learned.
        y = torch.arange(1, rows + 1, device=device) / (rows + 1e-6)
        x = torch.arange(1, columns + 1, device=device) / (columns + 1e-6)
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)
        sines.append(sine(grid, width // 2, CELL_TEMPERATURE))
    return sines


def cell_centres(shapes: Sequence[tuple[int, int]], device: torch.device) -> list[Tensor]:
    """Centres (x, y) of the cells in shares of the image: a (cells, 2) for each level."""
    centres = []
    for rows, columns in shapes:
        y = (torch.arange(rows, device=device) + 0.5) / rows
        x = (torch.arange(columns, device=device) + 0.5) / columns
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        centres.append(torch.stack((grid_x, grid_y), dim=-1).flatten(0, 1))
    return centres


def box_sines(boxes: Tensor, width: int) -> Tensor:
    """Position embedding of boxes (..., 4): (..., 2 * `width`)."""
    x, y, w, h = boxes.unbind(-1)
    return sine(torch.stack((y, x, w, h), dim=-1), width // 2, BOX_TEMPERATURE)


def to_logits(boxes: Tensor) -> Tensor:
    """The inverse of the sigmoid, finite everywhere."""
    shares = boxes.clamp(0, 1)
    return shares.clamp(min=LOGIT_EPSILON).log() - (1 - shares).clamp(min=LOGIT_EPSILON).log()
