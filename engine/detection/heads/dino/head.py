"""DINO as a head: encoder, query selection, decoder, and how they are trained."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engine.detection.heads import HeadSettings
from engine.detection.heads.dino.attention import DeformableAttention
from engine.detection.heads.dino.decoder import Decoder
from engine.detection.heads.dino.denoising import denoising_queries
from engine.detection.heads.dino.encoder import Encoder
from engine.detection.heads.dino.losses import in_ignore_regions, layer_losses
from engine.detection.heads.dino.matching import Truths, match
from engine.detection.heads.dino.queries import QuerySelection
from engine.detection.queries import best_of_queries
from engine.detection.targets import Detections, Target
from engine.errors import ConfigError

PRIOR = 0.01  # score of everything at the start


class DinoHead(nn.Module):
    """DINO behind a projection neck. Weights of the authors' implementation fit (`reference.py`).

    Args:
        settings: `width` channels of every level, `detr` sizes of the transformer.
        strides: one for each level; how many there are is all that matters.

    Raises:
        ConfigError: a width that the attention heads do not divide.
    """

    def __init__(self, settings: HeadSettings, num_classes: int, strides: Sequence[int]):
        super().__init__()
        width, detr, levels = settings.width, settings.detr, len(strides)
        if width % detr.attention_heads:
            raise ConfigError(
                f"detr.attention_heads ({detr.attention_heads}) does not divide the head's width ({width}), which they "
                f"share among them. Choose a divisor of {width}."
            )
        self.settings = detr
        self.encoder = Encoder(width, levels, detr)
        self.selection = QuerySelection(width, detr.queries, num_classes)
        self.decoder = Decoder(width, levels, num_classes, detr)
        self.label_embed = nn.Embedding(num_classes, width)
        self._reset()

    def loss(
        self, levels: Sequence[Tensor], image_size: tuple[int, int], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Named, weighted losses: of the last decoder layer, of the layers before (auxiliary), of the encoder's own
        predictions, and of the denoising queries in all layers. `image_size` is (height, width) in pixels."""
        memory, shapes = self.encoder(levels)
        chosen = self.selection(memory, shapes)
        truths = Truths.of(targets, image_size)
        noisy = denoising_queries(truths, self.label_embed, self.settings)
        content = torch.cat((noisy.content, chosen.content), dim=1)
        anchors = torch.cat((noisy.anchors, chosen.anchors), dim=1)
        hidden = noisy.hidden(chosen.content.shape[1]) if noisy.count else None
        logits, boxes = self.decoder(content, anchors, memory, shapes, hidden)
        count = float(max(1, len(truths.labels)))

        def losses(logits: Tensor, boxes: Tensor, matches, count: float) -> dict[str, Tensor]:
            unjudged = in_ignore_regions(boxes, targets, image_size)
            return layer_losses(logits, boxes, matches, truths, unjudged, count)

        # The encoder's predictions as a layer before the first, so that all are matched in one go.
        all_logits = torch.cat((chosen.logits[None], logits[:, :, noisy.count :]))
        all_boxes = torch.cat((chosen.boxes[None], boxes[:, :, noisy.count :]))
        found = losses(all_logits, all_boxes, match(all_logits, all_boxes, truths), count)
        denoised = losses(
            logits[:, :, : noisy.count], boxes[:, :, : noisy.count], noisy.matches, count * max(1, noisy.groups)
        )
        return {
            **{name: value[-1] for name, value in found.items()},
            **{f"auxiliary_{name}": value[1:-1].sum() for name, value in found.items()},
            **{f"encoder_{name}": value[0] for name, value in found.items()},
            **{f"denoising_{name}": value.sum() for name, value in denoised.items()},
        }

    @torch.no_grad()
    def detect(self, levels: Sequence[Tensor], image_size: tuple[int, int]) -> list[Detections]:
        """The best pairs of query and class of each image. `image_size` is (height, width) in pixels."""
        logits, boxes = self.predict(levels)
        height, width = image_size
        return best_of_queries(logits, boxes, boxes.new_tensor([width, height, width, height]), image_size)

    def predict(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The last layer's class logits (B, queries, classes), and boxes (B, queries, 4) as (x centre, y centre, width,
        height) in shares of the image."""
        memory, shapes = self.encoder(levels)
        chosen = self.selection(memory, shapes)
        logits, boxes = self.decoder(chosen.content, chosen.anchors, memory, shapes)
        return logits[-1], boxes[-1]

    def _reset(self) -> None:
        """Initial weights as in the reference."""
        for part in (self.encoder, self.selection, self.decoder):
            for name, parameter in part.named_parameters():
                if parameter.dim() > 1 and not name.startswith(("class_head", "box_head")):
                    nn.init.xavier_uniform_(parameter)
            for module in part.modules():
                if isinstance(module, DeformableAttention):
                    module.reset()
        nn.init.normal_(self.encoder.level_embed)
        last = self.decoder.box_head.layers[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        nn.init.constant_(self.decoder.class_head.bias, -math.log((1 - PRIOR) / PRIOR))
        self.selection.box_head.load_state_dict(self.decoder.box_head.state_dict())
        self.selection.class_head.load_state_dict(self.decoder.class_head.state_dict())
