"""detectron2's detectors, whole, with the backbone of their config; the head of the same name explains the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.detection.heads import detectron2 as shared
from engine.detection.targets import MAX_BOXES, SCORE_FLOOR, Detections, Target
from engine.detection.zoo.options import options_of
from engine.detection.zoo.weights import load_backbone
from engine.sections import DetectorSettings


class Detectron2Detector(shared.Detectron2Head):
    """A dense detector or R-CNN of detectron2's model zoo, boxes only. The number of classes, the score floor and the
    number of boxes are ours, the rest its config's; from nothing its normalisations learn and no layer is frozen.

    Args:
        settings: name "detectron2:CONFIG"; weights none or a path, with tensors named as detectron2 names them.

    Raises:
        ModelError: see `build_model_of`, and for weights `load_backbone`.
    """

    def __init__(self, settings: DetectorSettings, num_classes: int):
        nn.Module.__init__(self)
        options_of(settings, [])
        afresh = settings.weights == "none"

        def built(file: Path) -> nn.Module:
            return (_from_python if file.suffix == ".py" else _from_yaml)(file, num_classes, afresh)

        self.model = shared.build_model_of(settings.name, built)
        self.names: list[str] = []
        load_backbone(self, self.model.backbone, settings)

    def forward(
        self, pixels: Tensor, targets: Sequence[Target], texts: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """detectron2's named losses."""
        return self.loss(self._levels(pixels), tuple(pixels.shape[-2:]), targets)

    @torch.no_grad()
    def detect(self, pixels: Tensor, texts: Sequence[str] | None = None) -> list[Detections]:
        """Boxes of each image, after detectron2's suppression."""
        return super().detect(self._levels(pixels), tuple(pixels.shape[-2:]))

    def _levels(self, pixels: Tensor) -> list[Tensor]:
        """The levels that the head reads, and their names as the losses look them up."""
        model, values = self.model, (pixels + 1) * 127.5
        if getattr(model, "input_format", None) != "RGB":  # the zoo's weights and statistics are of BGR pixels
            values = values.flip(1)
        features = model.backbone((values - model.pixel_mean) / model.pixel_std)
        self.names = list(getattr(model, "head_in_features", features))
        return [features[name] for name in self.names]


def _from_yaml(file: Path, num_classes: int, afresh: bool) -> nn.Module:
    cfg = shared.get_cfg()
    shared.merge_config(cfg, file)
    model = cfg.MODEL
    model.WEIGHTS, model.DEVICE, model.MASK_ON, model.KEYPOINT_ON = "", "cpu", False, False
    for section in (model.RETINANET, model.ROI_HEADS):
        section.NUM_CLASSES, section.SCORE_THRESH_TEST = num_classes, SCORE_FLOOR
    if not model.ANCHOR_GENERATOR.SIZES:  # the zoo's RetinaNets compute them in a tag, which is not run
        strides = [2 ** int(name.removeprefix("p")) for name in model.RETINANET.IN_FEATURES]
        model.ANCHOR_GENERATOR.SIZES = shared.anchor_sizes(strides, 3)
    if afresh:
        model.RESNETS.NORM, model.BACKBONE.FREEZE_AT = "BN", 0
    cfg.TEST.DETECTIONS_PER_IMAGE = MAX_BOXES
    return shared.build_honouring_ignore(cfg)


def _from_python(file: Path, num_classes: int, afresh: bool) -> nn.Module:
    """The zoo's dense detectors of the newer kind: code of the installed package itself."""
    model = shared.LazyConfig.load(str(file)).model
    model.num_classes, model.test_score_thresh, model.max_detections_per_image = num_classes, SCORE_FLOOR, MAX_BOXES
    if afresh:
        below = model.backbone.bottom_up
        below.freeze_at, below.stem.norm, below.stages.norm = 0, "BN", "BN"
    return shared.instantiate(model)
