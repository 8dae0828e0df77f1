"""torchvision's Faster R-CNN R50-FPN as a downstream detector, with the ignore regions that it lacks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights, fasterrcnn_resnet50_fpn
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from engine.config import DetectorSettings
from engine.detection.heads.two_stage import Predictor, ProposalHead, Proposals, Regions
from engine.detection.targets import Detections, Target


class FasterRcnn(nn.Module):
    """The stock model with its weights, sizes and sampling; only what lies in an ignore region teaches it nothing."""

    def __init__(self, settings: DetectorSettings, num_classes: int):
        super().__init__()
        weights = FasterRCNN_ResNet50_FPN_Weights.COCO_V1 if settings.pretrained else None
        side = settings.resolution
        self.model = fasterrcnn_resnet50_fpn(weights=weights, weights_backbone=None, min_size=side, max_size=2 * side)
        _teach_to_ignore(self.model, num_classes)

    def forward(
        self, pixels: Tensor, targets: Sequence[Target], texts: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        truths = [
            {"boxes": t.boxes_xyxy, "labels": t.labels + 1, "ignore": t.ignore_xyxy}  # label 0 is its background
            for t in targets
        ]
        return self.model(list((pixels + 1) / 2), truths)

    @torch.no_grad()
    def detect(self, pixels: Tensor, texts: Sequence[str] | None = None) -> list[Detections]:
        found = self.model(list((pixels + 1) / 2))
        return [Detections(f["boxes"], f["labels"] - 1, f["scores"]) for f in found]


class Resize(GeneralizedRCNNTransform):
    """torchvision's own resizing, which carries ignore regions along with the boxes."""

    def resize(self, image: Tensor, target: dict | None = None) -> tuple[Tensor, dict | None]:
        before = image.shape[-2:]
        image, target = super().resize(image, target)
        if target is not None:
            target["ignore"] = resize_boxes(target["ignore"], before, image.shape[-2:])
        return image, target


def _teach_to_ignore(model: FasterRCNN, num_classes: int) -> None:
    """Put parts that know ignore regions in the place of the stock ones; their weights and settings stay."""
    transform, rpn, regions = model.transform, model.rpn, model.roi_heads
    model.transform = Resize(
        transform.min_size[0], transform.max_size, transform.image_mean, transform.image_std, transform.size_divisible
    )
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
