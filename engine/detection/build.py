"""Downstream detectors by name: what the user trains on real and on real + generated data."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from engine.config import DetectorSettings
from engine.data.pixels import Frame
from engine.detection.detector import ConvBackbone, Detector, Reader
from engine.detection.faster_rcnn import FasterRcnn
from engine.detection.heads import HeadSettings


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
