"""Detection heads by name: one door for adapters and detectors.

A head is a module that reads the levels of a pyramid:

    loss(levels, image_size, targets) -> named losses
    detect(levels, image_size) -> Detections of each image, best first: at most MAX_BOXES, scored SCORE_FLOOR or more

`levels` are (B, width, h_i, w_i), finest first, at `strides` pixels a cell; `image_size` is (height, width) in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import nn

from engine.sections import DETECTRON2, DetrSettings

# What stands between backbone and head: "pyramid", a feature pyramid network; "projection", one convolution a level.
NECKS = {"dino": "projection", "rtdetr": "projection"}


@dataclass(frozen=True)
class HeadSettings:
    """A head's kind and sizes; heads take what concerns them."""

    kind: str
    width: int
    convs: int = 4
    detr: DetrSettings = field(default_factory=DetrSettings)

    @property
    def neck(self) -> str:
        return NECKS.get(self.kind, "pyramid")


def build_head(settings: HeadSettings, num_classes: int, strides: Sequence[int]) -> nn.Module:
    """An untrained head for levels of `settings.width` channels."""
    kind = DETECTRON2 if settings.kind.startswith(DETECTRON2) else settings.kind
    return HEADS[kind](settings, num_classes, tuple(strides))


def _dense(settings: HeadSettings, num_classes: int, strides: tuple[int, ...]) -> nn.Module:
    from engine.detection.heads.dense import DenseHead

    return DenseHead(settings.kind, num_classes, settings.width, strides, settings.convs)


def _two_stage(settings: HeadSettings, num_classes: int, strides: tuple[int, ...]) -> nn.Module:
    from engine.detection.heads.two_stage import TwoStageHead

    return TwoStageHead(settings, num_classes, strides)


def _dino(settings: HeadSettings, num_classes: int, strides: tuple[int, ...]) -> nn.Module:
    from engine.detection.heads.dino import DinoHead

    return DinoHead(settings, num_classes, strides)


def _rtdetr(settings: HeadSettings, num_classes: int, strides: tuple[int, ...]) -> nn.Module:
    from engine.detection.heads.rtdetr import RtDetrHead

    return RtDetrHead(settings, num_classes, strides)


def _detectron2(settings: HeadSettings, num_classes: int, strides: tuple[int, ...]) -> nn.Module:
    from engine.detection.heads.detectron2 import Detectron2Head

    return Detectron2Head(settings, num_classes, strides)


# The transformer and detectron2 heads are imported when asked for: their libraries take seconds, or are not there.
HEADS: dict[str, Callable[[HeadSettings, int, tuple[int, ...]], nn.Module]] = {
    "fcos": _dense,
    "retinanet": _dense,
    "fasterrcnn": _two_stage,
    "maskrcnn": _two_stage,
    "dino": _dino,
    "rtdetr": _rtdetr,
    DETECTRON2: _detectron2,
}
