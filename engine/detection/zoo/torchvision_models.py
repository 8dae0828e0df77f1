"""torchvision's detectors, whole, with the ignore regions that they lack."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from engine.detection.heads.dense import Fcos, Retina
from engine.detection.heads.two_stage import Predictor, ProposalHead, Proposals, Regions
from engine.detection.targets import MAX_BOXES, SCORE_FLOOR, Detections, Target
from engine.detection.zoo.options import options_of
from engine.detection.zoo.weights import load_backbone
from engine.sections import DetectorSettings

DENSE = {"retinanet_resnet50_fpn": Retina, "fcos_resnet50_fpn": Fcos}
TWO_STAGE = ("fasterrcnn_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_fpn")
TRAINED_LAYERS = 3  # of a backbone that comes with weights, as torchvision has it: the first layers stay as they are


class TorchvisionDetector(nn.Module):
    """A stock model with its sizes and sampling; only what lies in an ignore region teaches it nothing.

    Args:
        settings: `name` is of `DENSE` or `TWO_STAGE`; `options` are numbers that the model's class takes.

    Raises:
        ConfigError: an option that the class does not have. ModelError: weights that cannot be read, or do not fit.
    """

    def __init__(self, settings: DetectorSettings, num_classes: int):
        super().__init__()
        trained, name = settings.weights != "none", settings.name
        norm = FrozenBatchNorm2d if trained else nn.BatchNorm2d
        kind = {Retina: RetinaNet, Fcos: FCOS}.get(DENSE.get(name), FasterRCNN)
        given = options_of(settings, _numbers(kind))
        if name in DENSE:
            common = {"score_thresh": SCORE_FLOOR, "detections_per_img": MAX_BOXES}
            backbone = resnet_fpn_backbone(
                backbone_name="resnet50",
                weights=None,
                norm_layer=norm,
                trainable_layers=TRAINED_LAYERS if trained else 5,
                returned_layers=[2, 3, 4],
                extra_blocks=LastLevelP6P7(256, 256),
            )
            self.model, self.background = DENSE[name](backbone, num_classes, **{**common, **given}), 0
        else:
            common = {}
            if name == "fasterrcnn_mobilenet_v3_large_fpn":
                sizes = ((32, 64, 128, 256, 512),) * 3
                common["rpn_anchor_generator"] = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 3)
                backbone = mobilenet_backbone(
                    backbone_name="mobilenet_v3_large",
                    weights=None,
                    fpn=True,
                    norm_layer=norm,
                    trainable_layers=TRAINED_LAYERS if trained else 6,
                )
            else:
                backbone = resnet_fpn_backbone(
                    backbone_name="resnet50",
                    weights=None,
                    norm_layer=norm,
                    trainable_layers=TRAINED_LAYERS if trained else 5,
                )
            self.model, self.background = FasterRCNN(backbone, num_classes + 1, **{**common, **given}), 1
            _teach_to_ignore(self.model, num_classes)
        stock = self.model.transform
        self.model.transform = AsItIs(0, 0, stock.image_mean, stock.image_std)
        load_backbone(self, self.model.backbone.body, settings)

    def forward(
        self, pixels: Tensor, targets: Sequence[Target], texts: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """torchvision's named losses."""
        truths = [
            {"boxes": t.boxes_xyxy, "labels": t.labels + self.background, "ignore": t.ignore_xyxy} for t in targets
        ]
        return self.model(list((pixels + 1) / 2), truths)

    @torch.no_grad()
    def detect(self, pixels: Tensor, texts: Sequence[str] | None = None) -> list[Detections]:
        """Boxes of each image, after suppression. The module must be in evaluation mode."""
        found = self.model(list((pixels + 1) / 2))
        return [Detections(f["boxes"], f["labels"] - self.background, f["scores"]) for f in found]


class AsItIs(GeneralizedRCNNTransform):
    """torchvision's own preparation of images without its resizing: a frame has given them their size."""

    def resize(self, image: Tensor, target: dict | None = None) -> tuple[Tensor, dict | None]:
        return image, target


def _numbers(kind: type) -> list[str]:
    """The keywords of a torchvision detector's class that are plain numbers by default, its sizes and statistics
    apart."""
    keywords = inspect.signature(kind.__init__).parameters.values()
    return [k.name for k in keywords if type(k.default) in (int, float) and k.name not in ("min_size", "max_size")]


def _teach_to_ignore(model: FasterRCNN, num_classes: int) -> None:
    """Put parts that know ignore regions in the place of the stock ones; their weights and settings stay."""
    rpn, regions = model.rpn, model.roi_heads
    channels = model.backbone.out_channels
    head = ProposalHead(channels, rpn.anchor_generator.num_anchors_per_location()[0])
    head.load_state_dict(rpn.head.state_dict())
    model.rpn = Proposals(
        rpn.anchor_generator,
        head,
        fg_iou_thresh=rpn.proposal_matcher.high_threshold,
        bg_iou_thresh=rpn.proposal_matcher.low_threshold,
        batch_size_per_image=rpn.fg_bg_sampler.batch_size_per_image,
        positive_fraction=rpn.fg_bg_sampler.positive_fraction,
        pre_nms_top_n=rpn._pre_nms_top_n,
        post_nms_top_n=rpn._post_nms_top_n,
        nms_thresh=rpn.nms_thresh,
        score_thresh=rpn.score_thresh,
    )
    model.roi_heads = Regions(
        regions.box_roi_pool,
        regions.box_head,
        Predictor(regions.box_predictor.cls_score.in_features, num_classes + 1),
        fg_iou_thresh=regions.proposal_matcher.high_threshold,
        bg_iou_thresh=regions.proposal_matcher.low_threshold,
        batch_size_per_image=regions.fg_bg_sampler.batch_size_per_image,
        positive_fraction=regions.fg_bg_sampler.positive_fraction,
        bbox_reg_weights=regions.box_coder.weights,
        score_thresh=regions.score_thresh,
        nms_thresh=regions.nms_thresh,
        detections_per_img=regions.detections_per_img,
    )
