"""Downstream detectors by name: what the user trains on real and on real + generated data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights, fasterrcnn_resnet50_fpn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

from engine.config import DetectorSettings
from engine.data.pixels import Frame
from engine.detection.detector import ConvBackbone, Detector, Reader
from engine.detection.heads import Detections, Target


@dataclass(frozen=True)
class BuiltDetector:
    """A detector ready for `fit` and `predict`: its parameters, losses, predictions, and how it sees images."""

    module: nn.Module
    loss_of: Callable[[Tensor, list[Target]], dict[str, Tensor]]
    detect: Callable[[Tensor], list[Detections]]
    frame: Frame


def build_detector(settings: DetectorSettings, num_classes: int) -> BuiltDetector:
    """Build `settings.name` with fresh weights from torch's current random state."""
    return {"small": _small, "fasterrcnn_resnet50_fpn": _faster_rcnn}[settings.name](settings, num_classes)


def _small(settings: DetectorSettings, num_classes: int) -> BuiltDetector:
    """The adapter's own reader on a small convolutional backbone: trains on a CPU in a minute."""
    backbone = ConvBackbone(settings.width // 16 * 8)
    reader = Reader("fcos", num_classes, backbone.channels, backbone.strides, settings.width, settings.convs)
    detector = Detector(backbone, reader)
    return BuiltDetector(detector, detector.loss, detector.detect, Frame(settings.resolution, backbone.strides[-1]))


def _faster_rcnn(settings: DetectorSettings, num_classes: int) -> BuiltDetector:
    """torchvision's Faster R-CNN R50-FPN. It has no ignore label: ignore regions count as background here."""
    weights = FasterRCNN_ResNet50_FPN_Weights.COCO_V1 if settings.pretrained else None
    side = settings.resolution
    model = fasterrcnn_resnet50_fpn(weights=weights, weights_backbone=None, min_size=side, max_size=2 * side)
    features = model.roi_heads.box_predictor.cls_score.in_features
    model.roi_heads.box_predictor = FastRCNNPredictor(features, num_classes + 1)

    def loss_of(pixels: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        truths = [{"boxes": t.boxes_xyxy, "labels": t.labels + 1} for t in targets]  # 0 is its background
        return model(list((pixels + 1) / 2), truths)

    @torch.no_grad()
    def detect(pixels: Tensor) -> list[Detections]:
        found = model(list((pixels + 1) / 2))
        return [Detections(f["boxes"], f["labels"] - 1, f["scores"]) for f in found]

    return BuiltDetector(model, loss_of, detect, Frame(side, 32))
