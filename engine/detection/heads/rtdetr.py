"""RT-DETRv2 (Lv et al., arXiv 2407.17140) from transformers, fed with the levels of any backbone.

Hybrid encoder, query selection, deformable decoder, denoising, matcher and losses are transformers'. Three things are
not: there is no backbone, since levels enter where its projected features would; the anchors follow the levels' sizes;
and the weights start as PyTorch starts them, since transformers draws them for loading a checkpoint over them (scales
of the batch normalisations near 0), which hardly trains.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import box_convert
from transformers import RTDetrResNetConfig, RTDetrV2Config, RTDetrV2Model
from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher, RTDetrLoss
from transformers.models.rt_detr_v2.modeling_rt_detr_v2 import (
    RTDetrV2MLPPredictionHead,
    RTDetrV2MultiscaleDeformableAttention,
)

from engine.detection.heads import HeadSettings
from engine.detection.ignore import in_ignore_region
from engine.detection.queries import best_of_queries
from engine.detection.targets import Detections, Target
from engine.errors import ConfigError, ModelError

ANCHOR_CELLS = 4  # side of an anchor in cells: RT-DETR's 0.05 of a 640 px image at stride 8
CLASS_PRIOR = 0.01
# transformers' names of losses, and what they are called here.
LOSSES = {"loss_vfl": "classification", "loss_bbox": "box_l1", "loss_giou": "box_giou"}


class RtDetrHead(nn.Module):
    """RT-DETRv2 on levels of `settings.width` channels, sizes from `settings.detr`.

    Args:
        strides: pixels a cell of each level, finest first, each twice the one before.

    Raises:
        ConfigError: the width cannot be divided among the attention heads.
        ModelError: strides that do not double, which the hybrid encoder cannot fuse.
    """

    def __init__(self, settings: HeadSettings, num_classes: int, strides: Sequence[int]):
        super().__init__()
        width, detr = settings.width, settings.detr
        if width % detr.attention_heads or width % 4:
            raise ConfigError(
                f"The rtdetr head is {width} channels wide: that must be a multiple of 4 and of the "
                f"{detr.attention_heads} attention heads. Change the head's width or detr.attention_heads."
            )
        if any(after != 2 * before for before, after in zip(strides, strides[1:], strict=False)):
            raise ModelError(
                f"The rtdetr head fuses levels whose strides double; it was given {list(strides)}. Use another head."
            )
        self.queries, self.coarsest = detr.queries, strides[-1]
        self.model = _Transformer(_config(settings, num_classes, strides))
        self.criterion = _Loss(self.model.config)

    def loss(
        self, levels: Sequence[Tensor], image_size: tuple[int, int], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Named losses, each summed over decoder layers, query selection and denoising.

        `levels` (B, width, h_i, w_i) finest first, `image_size` (height, width) in pixels.
        """
        frame = self._frame(levels)
        labels = [
            {
                "class_labels": t.labels,
                "boxes": box_convert(t.boxes_xyxy / frame, "xyxy", "cxcywh"),
                "ignore_xyxy": t.ignore_xyxy / frame,
            }
            for t in targets
        ]
        found = self._run(levels, labels)
        with torch.autocast(levels[0].device.type, enabled=False):
            outputs = _for_criterion(found)
            if not torch.isfinite(outputs["pred_boxes"]).all():
                # The matcher would raise a bare ValueError; the training loop names the step.
                return {name: outputs["pred_boxes"].sum() for name in LOSSES.values()}
            losses = self.criterion(outputs, labels)
        return {
            name: sum(value for key, value in losses.items() if key.startswith(theirs))
            for theirs, name in LOSSES.items()
        }

    @torch.no_grad()
    def detect(self, levels: Sequence[Tensor], image_size: tuple[int, int]) -> list[Detections]:
        """Boxes of each image: the best of queries x classes, clipped to the image; no suppression is needed."""
        was_training = self.training
        self.eval()
        try:
            found = self._run(levels)
        finally:
            self.train(was_training)
        logits, boxes = found.intermediate_logits[:, -1], found.intermediate_reference_points[:, -1]
        return best_of_queries(logits, boxes, self._frame(levels), image_size)

    def _run(self, levels, labels=None):
        # The encoder doubles each level onto the next finer one: odd sizes are filled up to those of the coarsest.
        height, width = levels[-1].shape[-2:]
        filled = []
        for i, level in enumerate(reversed(levels)):
            right, below = (width << i) - level.shape[-1], (height << i) - level.shape[-2]
            filled.insert(0, functional.pad(level, (0, right, 0, below)))
        self.model.config.num_queries = min(self.queries, sum(level.shape[-2] * level.shape[-1] for level in filled))
        encoded = self.model.encoder(filled)
        return self.model(None, inputs_embeds=filled[0], encoder_outputs=encoded, labels=labels)

    def _frame(self, levels) -> Tensor:
        """What boxes are relative to: width, height, width, height in pixels of all the cells, (4,)."""
        height, width = (n * self.coarsest for n in levels[-1].shape[-2:])
        return torch.tensor([width, height, width, height], dtype=torch.float32, device=levels[0].device)


def _config(settings: HeadSettings, num_classes: int, strides: Sequence[int]) -> RTDetrV2Config:
    detr, count, widths = settings.detr, len(strides), [settings.width] * len(strides)
    return RTDetrV2Config(
        # The smallest there is: it is built and thrown away.
        backbone_config=RTDetrResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic"),
        num_labels=num_classes,
        initializer_bias_prior_prob=CLASS_PRIOR,
        d_model=settings.width,
        encoder_hidden_dim=settings.width,
        encoder_in_channels=widths,
        decoder_in_channels=widths,
        feat_strides=list(strides),
        encode_proj_layers=[count - 1],
        num_feature_levels=count,
        decoder_n_levels=count,
        encoder_layers=detr.encoder_layers,
        decoder_layers=detr.decoder_layers,
        encoder_attention_heads=detr.attention_heads,
        decoder_attention_heads=detr.attention_heads,
        encoder_ffn_dim=detr.feedforward,
        decoder_ffn_dim=detr.feedforward,
        decoder_n_points=detr.sampling_points,
        num_queries=detr.queries,
        num_denoising=detr.denoising_queries,
        label_noise_ratio=detr.label_noise,
        box_noise_scale=max(detr.box_noise, 1e-6),  # at 0 transformers forgets to take the boxes' logits
        eval_size=None,
        anchor_image_size=None,
    )


class _Transformer(RTDetrV2Model):
    """Encoder, query selection and decoder, with the prediction heads of every decoder layer and without a backbone."""

    def __init__(self, config: RTDetrV2Config):
        super().__init__(config)
        self.backbone, self.encoder_input_proj = nn.Identity(), nn.ModuleList()
        layers, width = range(config.decoder_layers), config.d_model
        self.decoder.class_embed = nn.ModuleList(nn.Linear(width, config.num_labels) for _ in layers)
        self.decoder.bbox_embed = nn.ModuleList(RTDetrV2MLPPredictionHead(width, width, 4, 3) for _ in layers)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.BatchNorm2d):
                module.reset_parameters()
        for module in self.modules():
            if isinstance(module, RTDetrV2MultiscaleDeformableAttention):
                self._init_weights(module)
        prior = -torch.log(torch.tensor(1 / CLASS_PRIOR - 1)).item()
        for classes in (self.enc_score_head, *self.decoder.class_embed):
            nn.init.constant_(classes.bias, prior)
        for boxes in (self.enc_bbox_head, *self.decoder.bbox_embed):
            nn.init.zeros_(boxes.layers[-1].weight)
            nn.init.zeros_(boxes.layers[-1].bias)

    def generate_anchors(self, spatial_shapes, device, dtype):
        """One square anchor a cell, as logits of its centre and size relative to all cells: (1, cells, 4) float32; and
        which anchors count, all of them: (1, cells, 1) bool."""
        anchors = []
        for height, width in spatial_shapes:
            y, x = torch.meshgrid(
                (torch.arange(height, device=device) + 0.5) / height,
                (torch.arange(width, device=device) + 0.5) / width,
                indexing="ij",
            )
            sides = [torch.full_like(x, ANCHOR_CELLS / width), torch.full_like(x, ANCHOR_CELLS / height)]
            anchors.append(torch.stack([x, y, *sides], dim=-1).flatten(0, 1))
        anchors = torch.cat(anchors)[None]
        return anchors.logit(eps=1e-2), torch.ones_like(anchors[..., :1], dtype=torch.bool)


class _Matcher(RTDetrHungarianMatcher):
    """The Hungarian matcher, also for batches without any object."""

    def forward(self, outputs, targets):
        if not any(len(t["boxes"]) for t in targets):
            none = torch.zeros(0, dtype=torch.int64)
            return [(none, none) for _ in targets]
        return super().forward(outputs, targets)


class _Loss(RTDetrLoss):
    """transformers' loss, in which unmatched queries within an ignore region have no classification loss."""

    def __init__(self, config: RTDetrV2Config):
        super().__init__(config)
        self.matcher = _Matcher(config)

    def loss_labels_vfl(self, outputs, targets, indices, num_boxes, log=True):
        boxes = box_convert(outputs["pred_boxes"].detach(), "cxcywh", "xyxy")
        ignored = torch.stack(
            [
                in_ignore_region(b, t["ignore_xyxy"], box_convert(t["boxes"], "cxcywh", "xyxy"))
                for b, t in zip(boxes, targets, strict=True)
            ]
        )
        ignored[self._get_source_permutation_idx(indices)] = False
        # A logit so low that it has neither loss nor gradient.
        logits = outputs["logits"].masked_fill(ignored[..., None], -1e3)
        return super().loss_labels_vfl({**outputs, "logits": logits}, targets, indices, num_boxes)


def _for_criterion(found) -> dict:
    """The model's outputs as RTDetrLoss reads them: last layer, earlier layers and query selection, denoising."""
    logits, boxes = found.intermediate_logits.float(), found.intermediate_reference_points.float()
    denoising = found.denoising_meta_values
    extra = {}
    if denoising is not None:
        noised, logits = logits.split(denoising["dn_num_split"], dim=2)
        noised_boxes, boxes = boxes.split(denoising["dn_num_split"], dim=2)
        extra = {"dn_auxiliary_outputs": _layers(noised, noised_boxes), "denoising_meta_values": denoising}
    *earlier, last = _layers(logits, boxes)
    selection = {"logits": found.enc_topk_logits.float(), "pred_boxes": found.enc_topk_bboxes.float()}
    return {**last, "auxiliary_outputs": [*earlier, selection], **extra}


def _layers(logits: Tensor, boxes: Tensor) -> list[dict[str, Tensor]]:
    return [{"logits": a, "pred_boxes": b} for a, b in zip(logits.unbind(1), boxes.unbind(1), strict=True)]
