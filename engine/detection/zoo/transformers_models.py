"""Detection transformers of the transformers library, whole: RT-DETRv2, D-FINE, Deformable DETR, LW-DETR, RF-DETR."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torchvision.ops import box_convert
from transformers import (
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DFineConfig,
    DFineForObjectDetection,
    LwDetrConfig,
    LwDetrForObjectDetection,
    PreTrainedConfig,
    PreTrainedModel,
    RfDetrConfig,
    RfDetrForObjectDetection,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
)
from transformers.backbone_utils import BackboneMixin

from engine.detection.queries import best_of_queries
from engine.detection.targets import Detections, Target
from engine.detection.zoo.losses import honouring_ignore
from engine.detection.zoo.options import options_of
from engine.detection.zoo.transformers_sizes import FULL, TINY
from engine.detection.zoo.weights import from_pretrained
from engine.errors import ConfigError
from engine.sections import DetectorSettings

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation of pixels in 0 to 1
PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
CLASS_PRIOR = 0.01
# transformers' names of losses, and what they are called here.
LOSSES = {
    "loss_vfl": "classification",
    "loss_ce": "classification",
    "loss_bbox": "box_l1",
    "loss_giou": "box_giou",
    "loss_fgl": "box_distribution",
    "loss_ddf": "box_distillation",
}


@dataclass(frozen=True)
class Family:
    """Classes of transformers, how pixels go in, and whether the model takes fewer queries where cells are few."""

    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    pixels: tuple[tuple[float, ...], tuple[float, ...]]
    elastic: bool = False


FAMILIES = {
    "rtdetr_v2": Family(RTDetrV2Config, RTDetrV2ForObjectDetection, PLAIN, elastic=True),
    "d_fine": Family(DFineConfig, DFineForObjectDetection, PLAIN, elastic=True),
    "deformable_detr": Family(DeformableDetrConfig, DeformableDetrForObjectDetection, IMAGENET),
    "lw_detr": Family(LwDetrConfig, LwDetrForObjectDetection, IMAGENET),
    "rf_detr": Family(RfDetrConfig, RfDetrForObjectDetection, IMAGENET),
}


class TransformersDetector(nn.Module):
    """A stock model with its own losses; what lies in an ignore region teaches it nothing (see `losses`). D-FINE's
    self-distillation of boxes goes on there, since it does not say that something is there or not.

    Args:
        settings: `name` is a family; `size` and `options` say its config, `weights` where it starts.

    Raises:
        ConfigError: an option that the config does not have or take, or more queries than cells.
        ModelError: weights that cannot be read, or do not fit.
    """

    def __init__(self, settings: DetectorSettings, num_classes: int):
        super().__init__()
        self.family = FAMILIES[settings.name]
        if settings.weights == "none":
            config = _config(self.family, settings, num_classes)
            self.model = self.family.model(config)
            _start_afresh(self.model)
        else:
            self.model = from_pretrained(self.family.model, settings, num_classes)
        self.model.loss_function = honouring_ignore(self.model.loss_function)
        self.queries = self.model.config.num_queries
        cells = (settings.resolution // _stride(self.model.config)) ** 2
        if not self.family.elastic and settings.name != "deformable_detr" and cells < self.queries:
            raise ConfigError(
                f"detector.name={settings.name} chooses {self.queries} queries among the cells of its levels, of which "
                f"detector.resolution={settings.resolution} has {cells}. Raise it, or lower num_queries in "
                "detector.options."
            )
        mean, deviation = self.family.pixels
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(3, 1, 1), persistent=False)

    @property
    def multiple(self) -> int:
        """Pixels that the sides of an image must be a multiple of."""
        backbone = self.model.config.backbone_config
        windows = getattr(backbone, "num_windows_side", getattr(backbone, "num_windows", 1))
        return getattr(backbone, "patch_size", 32) * windows

    def forward(
        self, pixels: Tensor, targets: Sequence[Target], texts: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Named losses, each summed over what the model predicts on the way."""
        frame = _frame(pixels)
        labels = [
            {
                "class_labels": t.labels,
                "boxes": box_convert(t.boxes_xyxy / frame, "xyxy", "cxcywh"),
                "ignore_xyxy": t.ignore_xyxy / frame,
            }
            for t in targets
        ]
        found = self._run(pixels, labels).loss_dict
        config, losses = self.model.config, {}
        # Two of the criteria weigh their losses themselves; of the others the config says how.
        weights = {"loss_bbox": "bbox_loss_coefficient", "loss_giou": "giou_loss_coefficient"}
        weights["loss_ce"] = "class_loss_coefficient"
        for theirs, ours in LOSSES.items():
            parts = [value for key, value in found.items() if key.startswith(theirs)]
            if parts:
                losses[ours] = getattr(config, weights.get(theirs, ""), 1.0) * sum(parts)
        return losses

    @torch.no_grad()
    def detect(self, pixels: Tensor, texts: Sequence[str] | None = None) -> list[Detections]:
        """The best pairs of query and class."""
        was_training = self.training
        self.eval()
        try:
            found = self._run(pixels)
        finally:
            self.train(was_training)
        return best_of_queries(found.logits, found.pred_boxes, _frame(pixels), tuple(pixels.shape[-2:]))

    def _run(self, pixels: Tensor, labels=None):
        if self.family.elastic:
            cells = sum((pixels.shape[-2] // s) * (pixels.shape[-1] // s) for s in self.model.config.feat_strides)
            self.model.config.num_queries = min(self.queries, cells)
        return self.model(pixel_values=((pixels + 1) / 2 - self.mean) / self.deviation, labels=labels)


def _frame(pixels: Tensor) -> Tensor:
    height, width = pixels.shape[-2:]
    return torch.tensor([width, height, width, height], dtype=torch.float32, device=pixels.device)


def _stride(config: PreTrainedConfig) -> int:
    """Pixels a cell of the only level of a plain vision transformer; 1 where levels are several."""
    return getattr(config.backbone_config, "patch_size", 1)


def _config(family: Family, settings: DetectorSettings, num_classes: int) -> PreTrainedConfig:
    sizes = {"full": FULL, "tiny": TINY}[settings.size][settings.name]
    known = [field.name for field in dataclasses.fields(family.config)]
    given = options_of(settings, known)
    try:
        return family.config(**{**sizes, **given}, num_labels=num_classes)
    except (TypeError, ValueError, KeyError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"detector.options: {settings.name} cannot be built from {', '.join(settings.options)}: {reason}"
        ) from None


def _start_afresh(model: PreTrainedModel) -> None:
    """Weights for training from nothing, as PyTorch and the papers start them, all of them trained. transformers draws
    its own for loading a checkpoint over them: scales of normalisations near 0, queries nearly alike, a backbone whose
    statistics are frozen before any was taken. Its image backbones start well."""
    _thaw(model)
    model.requires_grad_(True)
    backbone = set(next(part for part in model.modules() if isinstance(part, BackboneMixin)).modules())
    plain = (nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.Embedding)
    parts = [part for part in model.modules() if part not in backbone]
    for part in parts:
        if isinstance(part, plain):
            part.reset_parameters()
    for part in parts:
        if not isinstance(part, (*plain, nn.LayerNorm)):
            model._init_weights(part)
        if hasattr(part, "reference_point_embed"):  # what is added to the boxes that are chosen
            nn.init.zeros_(part.reference_point_embed.weight)
    if isinstance(model, DeformableDetrForObjectDetection):
        for classes, boxes in zip(model.class_embed, model.bbox_embed, strict=True):
            nn.init.constant_(classes.bias, -math.log(1 / CLASS_PRIOR - 1))
            nn.init.zeros_(boxes.layers[-1].weight)
            nn.init.zeros_(boxes.layers[-1].bias)
        nn.init.constant_(model.bbox_embed[0].layers[-1].bias[2:], -2.0)  # boxes begin small


def _thaw(module: nn.Module) -> None:
    for name, child in module.named_children():
        if type(child).__name__.endswith("FrozenBatchNorm2d"):
            setattr(module, name, nn.BatchNorm2d(len(child.weight)))
        else:
            _thaw(child)
