"""Mixed query selection: the encoder's best cells give the anchors, the content is learned."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.detection.heads.dino.attention import Mlp, Shapes
from engine.detection.heads.dino.positions import cell_centres

FINEST_EXTENT = 0.05  # a finest cell proposes a box of this share of the image; each coarser level twice that
BORDER = 0.01  # proposals with a coordinate so near to 0 or 1 are not used


@dataclass(frozen=True)
class Selection:
    """Queries (B, K): anchors (B, K, 4) in logits and content (B, K, width) for the decoder; and what the encoder
    itself predicts there, which has its own loss: class logits (B, K, classes), boxes (B, K, 4) in shares."""

    anchors: Tensor
    content: Tensor
    logits: Tensor
    boxes: Tensor


class QuerySelection(nn.Module):
    """Every cell of the memory proposes a box; the K whose class is surest become queries."""

    def __init__(self, width: int, queries: int, num_classes: int):
        super().__init__()
        self.project = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.class_head = nn.Linear(width, num_classes)
        self.box_head = Mlp(width, width, 4, 3)
        self.content = nn.Parameter(torch.empty(queries, width))

    def forward(self, memory: Tensor, shapes: Shapes) -> Selection:
        """Select from memory (B, S, width); K is the number of queries, or S where the levels have fewer cells."""
        with torch.autocast(memory.device.type, enabled=False):  # bfloat16 would rank many cells the same
            proposals = _proposals(shapes, memory.device)
            usable = proposals.isfinite().all(-1, keepdim=True)
            cells = self.norm(self.project(memory.float() * usable))
            logits = self.class_head(cells)
            count = min(len(self.content), memory.shape[1])
            best = logits.amax(-1).topk(count, dim=1).indices[..., None]
            chosen = cells.gather(1, best.expand(-1, -1, cells.shape[-1]))
            anchors = self.box_head(chosen) + proposals[best[..., 0]]
            content = self.content[:count].expand(len(memory), -1, -1)
            logits = logits.gather(1, best.expand(-1, -1, logits.shape[-1]))
            return Selection(anchors.detach(), content, logits, anchors.sigmoid())


def _proposals(shapes: Shapes, device: torch.device) -> Tensor:
    """A box (S, 4) in logits for each cell; infinite where it comes too near to the border to be one."""
    boxes = []
    for level, centres in enumerate(cell_centres(shapes, device)):
        boxes.append(torch.cat((centres, torch.full_like(centres, FINEST_EXTENT * 2.0**level)), dim=-1))
    joined = torch.cat(boxes)
    usable = ((joined > BORDER) & (joined < 1 - BORDER)).all(-1, keepdim=True)
    return torch.logit(joined).masked_fill(~usable, torch.inf)
