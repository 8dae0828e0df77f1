"""Downstream detectors by name: what the user trains on real and on real + generated data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights, fasterrcnn_resnet50_fpn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

from engine.config import DetectorSettings
from engine.data.pixels import Frame
from engine.detection.detector import ConvBackbone, Detector, Reader
from engine.detection.heads import HeadSettings
from engine.detection.targets import Detections, Target


@dataclass(frozen=True)
class BuiltDetector:
    """A detector ready for `fit` and `predict`, and how it sees images.

    `module(pixels, targets, texts)` gives named losses, `module.detect(pixels, texts)` gives detections.
    """

    module: nn.Module
    frame: Frame


def build_detector(settings: DetectorSettings, num_classes: int) -> BuiltDetector:
    """Build `settings.name` with fresh weights from torch's current random state."""
    return {"small": _small, "fasterrcnn_resnet50_fpn": _faster_rcnn}[settings.name](settings, num_classes)


def _small(settings: DetectorSettings, num_classes: int) -> BuiltDetector:
    """The adapter's own reader on a small convolutional backbone: trains on a CPU in a minute."""
    backbone = ConvBackbone(settings.width // 16 * 8)
    head = HeadSettings("fcos", settings.width, settings.convs)
    reader = Reader(head, num_classes, backbone.channels, backbone.strides)
    return BuiltDetector(Detector(backbone, reader), Frame(settings.resolution, backbone.strides[-1]))


def _faster_rcnn(settings: DetectorSettings, num_classes: int) -> BuiltDetector:
    return BuiltDetector(FasterRcnn(settings, num_classes), Frame(settings.resolution, 32))


class FasterRcnn(nn.Module):
    """torchvision's Faster R-CNN R50-FPN. It has no ignore label: ignore regions count as background here."""

    def __init__(self, settings: DetectorSettings, num_classes: int):
        super().__init__()
        weights = FasterRCNN_ResNet50_FPN_Weights.COCO_V1 if settings.pretrained else None
        side = settings.resolution
        self.model = fasterrcnn_resnet50_fpn(weights=weights, weights_backbone=None, min_size=side, max_size=2 * side)
        features = self.model.roi_heads.box_predictor.cls_score.in_features
        self.model.roi_heads.box_predictor = FastRCNNPredictor(features, num_classes + 1)

    def forward(
        self, pixels: Tensor, targets: Sequence[Target], texts: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        truths = [{"boxes": t.boxes_xyxy, "labels": t.labels + 1} for t in targets]  # 0 is its background
        return self.model(list((pixels + 1) / 2), truths)

    @torch.no_grad()
    def detect(self, pixels: Tensor, texts: Sequence[str] | None = None) -> list[Detections]:
        found = self.model(list((pixels + 1) / 2))
        return [Detections(f["boxes"], f["labels"] - 1, f["scores"]) for f in found]
