"""torchvision's two-stage heads, Faster R-CNN and Mask R-CNN: proposals first, then a closer look at each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_loss, paste_masks_in_image
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign, box_area

from engine.detection.heads import HeadSettings
from engine.detection.ignore import in_ignore_region
from engine.detection.targets import MAX_BOXES, SCORE_FLOOR, Detections, Target

PROPOSALS = 300  # of each image, of 1000 before suppression (Ren et al. 2015, section 4)
SAMPLED_ANCHORS, SAMPLED_PROPOSALS = 256, 128  # of each image, for the losses (Ren et al. 2015; Girshick 2015)
MASK_THRESHOLD = 0.5


class TwoStageHead(nn.Module):
    """torchvision's Faster R-CNN or Mask R-CNN without its backbone and without its resizing.

    Widths keep the proportions of Lin et al. 2017 and He et al. 2017: hidden layers of four times the pyramid's width
    for boxes, `settings.convs` convolutions of the pyramid's width for masks.

    Args:
        settings: kind "fasterrcnn" or "maskrcnn", width of every level, convs of the mask branch.
        strides: pixels a cell of each level, finest first.
    """

    def __init__(self, settings: HeadSettings, num_classes: int, strides: Sequence[int]):
        super().__init__()
        width, names = settings.width, [str(i) for i in range(len(strides))]
        anchors = _Anchors(strides)
        self.proposals = Proposals(
            anchors,
            ProposalHead(width, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=SAMPLED_ANCHORS,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 1000, "testing": 1000},
            post_nms_top_n={"training": PROPOSALS, "testing": PROPOSALS},
            nms_thresh=0.7,
        )
        masks = {}
        if settings.kind == "maskrcnn":
            masks = {
                "mask_roi_pool": _pool(names, strides, 14),
                "mask_head": MaskRCNNHeads(width, (width,) * settings.convs, 1),
                "mask_predictor": MaskRCNNPredictor(width, width, num_classes + 1),
            }
        self.regions = Regions(
            _pool(names, strides, 7),
            TwoMLPHead(width * 7 * 7, 4 * width),
            Predictor(4 * width, num_classes + 1),  # class 0 is the background
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=SAMPLED_PROPOSALS,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=SCORE_FLOOR,
            nms_thresh=0.5,
            detections_per_img=MAX_BOXES,
            **masks,
        )

    def loss(
        self, levels: Sequence[Tensor], image_size: tuple[int, int], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Named losses of a batch. `image_size` is (height, width) in pixels. Masks are learned from the images whose
        target has them. Anchors and proposals are sampled with torch's random state, as in torchvision."""
        truths = [
            {"boxes": t.boxes_xyxy, "labels": t.labels + 1, "ignore": t.ignore_xyxy, "masks": t.masks} for t in targets
        ]
        features, images = _named(levels, image_size)
        with _mode(self.proposals, training=True):
            proposals, losses = self.proposals(images, features, truths)
        return losses | self.regions.loss(features, proposals, images.image_sizes, truths)

    @torch.no_grad()
    def detect(self, levels: Sequence[Tensor], image_size: tuple[int, int]) -> list[Detections]:
        """Boxes of each image of the batch, after non-maximum suppression per class, and the masks of Mask R-CNN."""
        features, images = _named(levels, image_size)
        with _mode(self.proposals, training=False), _mode(self.regions, training=False):
            proposals, _ = self.proposals(images, features)
            found, _ = self.regions(features, proposals, images.image_sizes)
        return [
            Detections(f["boxes"], f["labels"] - 1, f["scores"], _whole_masks(f, image_size) if "masks" in f else None)
            for f in found
        ]


class _Anchors(AnchorGenerator):
    """Anchors at the strides given. torchvision derives strides from the levels' sizes, which is off where a level's
    side was rounded up. Two sizes an octave: a centred square of any size between overlaps one by 0.7 or more."""

    def __init__(self, strides: Sequence[int]):
        super().__init__(tuple((4 * s, 4 * s * 2**0.5) for s in strides), ((0.5, 1.0, 2.0),) * len(strides))
        self.strides = tuple(strides)

    def forward(self, images: ImageList, levels: list[Tensor]) -> list[Tensor]:
        self.set_cell_anchors(torch.float32, levels[0].device)
        grids = [level.shape[-2:] for level in levels]
        anchors = torch.cat(self.grid_anchors(grids, [(stride, stride) for stride in self.strides]))
        return [anchors] * len(images.image_sizes)


class ProposalHead(RPNHead):
    """In float32 whatever autocast says: torchvision rounds anchors to the offsets' dtype, in bfloat16 to 2 pixels."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        scores, offsets = super().forward(x)
        return [s.float() for s in scores], [o.float() for o in offsets]


class Predictor(FastRCNNPredictor):
    """In float32 whatever autocast says, for the same reason."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, offsets = super().forward(x)
        return scores.float(), offsets.float()


class Proposals(RegionProposalNetwork):
    """Takes no background from ignore regions; targets carry them as "ignore" (M, 4) XYXY."""

    def assign_targets_to_anchors(self, anchors, targets):
        labels, boxes = super().assign_targets_to_anchors(anchors, targets)
        for label, places, truth in zip(labels, anchors, targets, strict=True):
            # Only background is taken back: the one anchor that fits a small object best may have its centre outside.
            label[(label == 0) & in_ignore_region(places, truth["ignore"], truth["boxes"])] = -1
        return labels, boxes

    def compute_loss(self, objectness, pred_bbox_deltas, labels, regression_targets):
        if all((label < 0).all() for label in labels):  # all is ignored: torchvision's mean over nothing is no number
            return objectness.sum() * 0, pred_bbox_deltas.sum() * 0
        return super().compute_loss(objectness, pred_bbox_deltas, labels, regression_targets)


class Regions(RoIHeads):
    """Takes no sample from ignore regions; targets carry them as "ignore" (M, 4) XYXY."""

    def forward(self, features, proposals, image_shapes, targets=None):
        if self.training:
            return [], self.loss(features, proposals, image_shapes, targets)
        return super().forward(features, proposals, image_shapes)

    def select_training_samples(self, proposals, targets):
        kept = [
            places[~in_ignore_region(places, truth["ignore"], truth["boxes"])]
            for places, truth in zip(proposals, targets, strict=True)
        ]
        return super().select_training_samples(kept, targets)

    def loss(self, features, proposals, image_sizes, truths) -> dict[str, Tensor]:
        """The training half of torchvision's forward, for images without masks and batches without samples too."""
        proposals, matched, labels, deltas = self.select_training_samples(proposals, truths)
        scores, offsets = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_sizes)))
        if len(scores):
            classifier, box = fastrcnn_loss(scores, offsets, labels, deltas)
        else:
            classifier, box = scores.sum() * 0, offsets.sum() * 0
        losses = {"loss_classifier": classifier, "loss_box_reg": box}
        if self.has_mask():
            shown = [
                torch.where((label > 0) if truth["masks"] is not None else torch.zeros_like(label, dtype=torch.bool))[0]
                for label, truth in zip(labels, truths, strict=True)
            ]
            places = [p[s] for p, s in zip(proposals, shown, strict=True)]
            logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, places, image_sizes)))
            losses["loss_mask"] = _mask_loss(
                logits, places, truths, [m[s] for m, s in zip(matched, shown, strict=True)]
            )
        return losses


def _mask_loss(logits: Tensor, places: list[Tensor], truths: list[dict], matched: list[Tensor]) -> Tensor:
    if not len(logits):
        return logits.sum() * 0
    used = [i for i, m in enumerate(matched) if len(m)]
    masks, labels = [truths[i]["masks"] for i in used], [truths[i]["labels"] for i in used]
    return maskrcnn_loss(logits, [places[i] for i in used], masks, labels, [matched[i] for i in used])


def _pool(names: list[str], strides: Sequence[int], side: int) -> MultiScaleRoIAlign:
    """RoIAlign that knows the strides. torchvision infers them from the first batch, as powers of two that double."""
    pool = MultiScaleRoIAlign(names, side, sampling_ratio=2)
    pool.scales, pool.map_levels = [1 / stride for stride in strides], _LevelOf(strides)
    return pool


class _LevelOf:
    """The level that a box is read from: the coarsest on which its side is 14 cells or more, else the finest (equation
    1 of Lin et al. 2017, where 224 pixels go to stride 16, for any strides)."""

    def __init__(self, strides: Sequence[int]):
        self.sides = [14.0 * stride for stride in strides[1:]]

    def __call__(self, boxes: list[Tensor]) -> Tensor:
        sides = box_area(torch.cat(boxes)).sqrt()
        return torch.bucketize(sides, sides.new_tensor(self.sides), right=True)


def _named(levels: Sequence[Tensor], image_size: tuple[int, int]) -> tuple[OrderedDict[str, Tensor], ImageList]:
    named = OrderedDict((str(i), level) for i, level in enumerate(levels))
    return named, ImageList(levels[0], [tuple(image_size)] * len(levels[0]))


def _whole_masks(found: dict[str, Tensor], image_size: tuple[int, int]) -> Tensor:
    """Masks (N, 1, 28, 28) of boxes -> masks (N, H, W) bool of the image."""
    return paste_masks_in_image(found["masks"], found["boxes"], image_size)[:, 0] > MASK_THRESHOLD


@contextmanager
def _mode(part: nn.Module, training: bool) -> Iterator[None]:
    """torchvision's parts give losses or boxes by their mode; here the method that was called decides, and the mode of
    the module stays the caller's."""
    before = part.training
    part.train(training)
    try:
        yield
    finally:
        part.train(before)
