"""The decoder: queries read one another and the memory, and refine their boxes layer by layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.detection.heads.dino.attention import DeformableAttention, FeedForward, Mlp, Shapes
from engine.detection.heads.dino.positions import box_sines, to_logits
from engine.sections import DetrSettings


class DecoderLayer(nn.Module):
    """Self-attention of the queries, deformable attention to the memory, feed-forward."""

    def __init__(self, width: int, levels: int, settings: DetrSettings):
        super().__init__()
        heads = settings.attention_heads
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.self_norm = nn.LayerNorm(width)
        self.cross_attention = DeformableAttention(width, levels, heads, settings.sampling_points)
        self.cross_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, settings.feedforward)

    def forward(
        self, x: Tensor, positions: Tensor, boxes: Tensor, memory: Tensor, shapes: Shapes, hidden: Tensor | None
    ) -> Tensor:
        """Queries x (B, T, width) with their positions and boxes (B, T, 4); `hidden` (T, T) is True where a query (row)
        may not see another (column)."""
        keys = x + positions
        x = self.self_norm(x + self.self_attention(keys, keys, x, attn_mask=hidden, need_weights=False)[0])
        x = self.cross_norm(x + self.cross_attention(x + positions, boxes, memory, shapes))
        return self.feed_forward(x)


class Decoder(nn.Module):
    """Layers with one class head and one box head for all of them."""

    def __init__(self, width: int, levels: int, num_classes: int, settings: DetrSettings):
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(width, levels, settings) for _ in range(settings.decoder_layers))
        self.norm = nn.LayerNorm(width)
        self.position_head = Mlp(2 * width, width, width, 2)
        self.class_head = nn.Linear(width, num_classes)
        self.box_head = Mlp(width, width, 4, 3)

    def forward(
        self, content: Tensor, anchors: Tensor, memory: Tensor, shapes: Shapes, hidden: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What each layer predicts.

        Args:
            content: (B, T, width). anchors: (B, T, 4) in logits. memory: (B, S, width) of levels of `shapes`.
            hidden: (T, T) bool, which queries (columns) a query (row) may not see.

        Returns:
            Class logits (layers, B, T, classes) and boxes (layers, B, T, 4) in shares of the image, float32.
        """
        x, width = content, content.shape[-1]
        boxes = before = anchors.float().sigmoid()
        all_logits, all_boxes = [], []
        for layer in self.layers:
            x = layer(x, self.position_head(box_sines(boxes, width)), boxes, memory, shapes, hidden)
            normed = self.norm(x)
            all_logits.append(self.class_head(normed).float())
            # Look forward twice: a layer's prediction starts from the boxes of the layer before it with their gradient,
            # its queries stand at the same boxes without. The two differ in the norm, as in the reference.
            all_boxes.append(self._refined(normed, before))
            if layer is not self.layers[-1]:
                before = self._refined(x, boxes)
                boxes = before.detach()
        return torch.stack(all_logits), torch.stack(all_boxes)

    def _refined(self, x: Tensor, boxes: Tensor) -> Tensor:
        """Boxes moved by what the box head says, in float32: bfloat16 knows a box to half a percent only."""
        with torch.autocast(x.device.type, enabled=False):
            return (self.box_head(x.float()) + to_logits(boxes)).sigmoid()
