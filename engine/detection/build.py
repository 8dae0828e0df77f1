"""Downstream detectors by name: what the user trains on real and on real + generated data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import nn

from engine.data.pixels import Frame
from engine.detection.detector import ConvBackbone, Detector, Reader
from engine.detection.heads import NECKS, HeadSettings
from engine.detection.zoo.options import options_of
from engine.errors import ConfigError
from engine.sections import DETECTRON2, SMALL, DetectorSettings, DetrSettings

TINY_DETR = DetrSettings(60, 1, 2, 4, 128, 2, 20)


@dataclass(frozen=True)
class BuiltDetector:
    """A detector ready for `fit` and `predict`, and how it sees images.

    `module(pixels, targets, texts)` gives named losses, `module.detect(pixels, texts)` gives detections.
    """

    module: nn.Module
    frame: Frame


def build_detector(settings: DetectorSettings, num_classes: int) -> BuiltDetector:
    """Build `settings.name` with fresh weights from torch's current random state, or those that the settings name.

    Raises:
        ConfigError: settings that the named detector does not have or take.
        ModelError: weights or a library that cannot be had, or weights that do not fit.
    """
    name = settings.name.partition(":")[0]
    return BUILDERS.get(name, _transformers)(settings, num_classes)


def _small(settings: DetectorSettings, num_classes: int) -> BuiltDetector:
    """The adapter's own reader on a small convolutional backbone: trains on a CPU in a minute."""
    if settings.weights != "none":
        raise ConfigError(f"detector.weights: {settings.name} starts from nothing. Set it to none.")
    kind = settings.name.removeprefix(SMALL) if settings.name.startswith(SMALL) else "fcos"
    transformer = kind in NECKS
    if not transformer:
        _only_full(settings)
    backbone = ConvBackbone(settings.width // 16 * 8)
    head = HeadSettings(kind, settings.width, settings.convs, _detr(settings, transformer))
    reader = Reader(head, num_classes, backbone.channels, backbone.strides)
    return BuiltDetector(Detector(backbone, reader), Frame(settings.resolution, backbone.strides[-1]))


def _dino(settings: DetectorSettings, num_classes: int) -> BuiltDetector:
    """DINO on a ResNet-50 at four scales, as in the paper; its pyramid is one convolution a level."""
    from engine.detection.zoo.resnet import ResNet50
    from engine.detection.zoo.weights import load_backbone

    backbone = ResNet50(trained=settings.weights != "none")
    head = HeadSettings("dino", 64 if settings.size == "tiny" else 256, detr=_detr(settings, True))
    reader = Reader(head, num_classes, backbone.channels, backbone.strides, extra_levels=1)
    detector = Detector(backbone, reader)
    load_backbone(detector, backbone, settings)
    return BuiltDetector(detector, Frame(settings.resolution, backbone.strides[-1]))


def _torchvision(settings: DetectorSettings, num_classes: int) -> BuiltDetector:
    from engine.detection.zoo.torchvision_models import TorchvisionDetector

    _only_full(settings)
    return BuiltDetector(TorchvisionDetector(settings, num_classes), Frame(settings.resolution, 32))


def _transformers(settings: DetectorSettings, num_classes: int) -> BuiltDetector:
    from engine.detection.zoo.transformers_models import TransformersDetector

    module = TransformersDetector(settings, num_classes)
    return BuiltDetector(module, Frame(settings.resolution, module.multiple))


def _detectron2(settings: DetectorSettings, num_classes: int) -> BuiltDetector:
    from engine.detection.zoo.detectron2_models import Detectron2Detector

    _only_full(settings)
    return BuiltDetector(Detectron2Detector(settings, num_classes), Frame(settings.resolution, 32))


# The libraries of the others take seconds to import, or are not there: only what is asked for is imported.
BUILDERS = {
    "small": _small,
    "dino_resnet50": _dino,
    "fasterrcnn_resnet50_fpn": _torchvision,
    "fasterrcnn_mobilenet_v3_large_fpn": _torchvision,
    "retinanet_resnet50_fpn": _torchvision,
    "fcos_resnet50_fpn": _torchvision,
    DETECTRON2.removesuffix(":"): _detectron2,
}


def _detr(settings: DetectorSettings, takes_options: bool) -> DetrSettings:
    """The sizes of the engine's own transformer heads; `detector.options` are fields of `DetrSettings`."""
    given = options_of(settings, [field.name for field in dataclasses.fields(DetrSettings)] if takes_options else [])
    return dataclasses.replace(TINY_DETR if settings.size == "tiny" else DetrSettings(), **given)


def _only_full(settings: DetectorSettings) -> None:
    if settings.size != "full":
        raise ConfigError(f"detector.size: {settings.name} comes in one size. Set it to full.")
