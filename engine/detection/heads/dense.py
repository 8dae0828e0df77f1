"""torchvision's dense heads, FCOS and RetinaNet: every cell of every level gives boxes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS, FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead
from torchvision.ops import box_iou

from engine.detection.ignore import in_ignore_region
from engine.detection.targets import MAX_BOXES, SCORE_FLOOR, Detections, Target


class _HonoursIgnore:
    """Takes no background from ignore regions; targets carry them as "ignore" (M, 4) XYXY."""

    def compute_loss(self, targets, head_outputs, anchors, *counts):
        ignored = torch.stack([self._ignored(a, t) for a, t in zip(anchors, targets, strict=True)])
        # A logit so low that it has neither loss nor gradient: these places count neither as object nor as background.
        logits = head_outputs["cls_logits"].masked_fill(ignored[..., None], -1e3)
        return super().compute_loss(targets, {**head_outputs, "cls_logits": logits}, anchors, *counts)

    def _ignored(self, anchors: Tensor, target: dict[str, Tensor]) -> Tensor:
        return in_ignore_region(anchors, target["ignore"], target["boxes"])


class Fcos(_HonoursIgnore, FCOS):
    """torchvision's FCOS, which ignores what it is told to, and whose untrained boxes are two strides wide.

    The stock ones are of no width, behind a ReLU: where the first steps push them below zero they have no gradient any
    more, and now and then a training never learns to place a box.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        nn.init.ones_(self.head.regression_head.bbox_reg.bias)


class Retina(_HonoursIgnore, RetinaNet):
    """torchvision's RetinaNet, which ignores what it is told to."""

    def _ignored(self, anchors: Tensor, target: dict[str, Tensor]) -> Tensor:
        ignored = super()._ignored(anchors, target)
        if len(target["boxes"]):
            # It gives every object its best anchor, which for a small object may have its centre outside.
            ignored &= self.proposal_matcher(box_iou(target["boxes"], anchors)) < 0
        return ignored


class DenseHead(nn.Module):
    """torchvision's FCOS or RetinaNet without its backbone and without its resizing.

    Args:
        kind: "fcos" or "retinanet".
        width: channels of every level. strides: pixels a cell of each level. convs: depth of FCOS's branches.
    """

    def __init__(self, kind: str, num_classes: int, width: int, strides: Sequence[int], convs: int):
        super().__init__()
        backbone = nn.Identity()
        backbone.out_channels = width
        common = {"score_thresh": SCORE_FLOOR, "detections_per_img": MAX_BOXES}
        if kind == "fcos":
            anchors = AnchorGenerator(tuple((s,) for s in strides), ((1.0,),) * len(strides))
            head = FCOSHead(width, 1, num_classes, convs)
            self.model = Fcos(backbone, num_classes, anchor_generator=anchors, head=head, **common)
        else:
            sizes = tuple(tuple(int(4 * s * 2 ** (i / 3)) for i in range(3)) for s in strides)
            anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(strides))
            head = RetinaNetHead(width, anchors.num_anchors_per_location()[0], num_classes)
            self.model = Retina(backbone, num_classes, anchor_generator=anchors, head=head, **common)

    def loss(
        self, levels: Sequence[Tensor], image_size: tuple[int, int], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Named losses of a batch. `image_size` is (height, width) in pixels."""
        outputs, anchors, counts = self._run(levels, image_size)
        truths = [{"boxes": t.boxes_xyxy, "labels": t.labels, "ignore": t.ignore_xyxy} for t in targets]
        if isinstance(self.model, FCOS):
            return self.model.compute_loss(truths, outputs, anchors, counts)
        return self.model.compute_loss(truths, outputs, anchors)

    @torch.no_grad()
    def detect(self, levels: Sequence[Tensor], image_size: tuple[int, int]) -> list[Detections]:
        """Boxes of each image of the batch, after non-maximum suppression per class."""
        outputs, anchors, counts = self._run(levels, image_size)
        split = {name: list(value.split(counts, dim=1)) for name, value in outputs.items()}
        per_level = [list(a.split([c for c in counts])) for a in anchors]
        found = self.model.postprocess_detections(split, per_level, [image_size] * len(anchors))
        return [Detections(f["boxes"], f["labels"], f["scores"]) for f in found]

    def _run(self, levels, image_size):
        levels = list(levels)
        outputs = self.model.head(levels)
        batch = levels[0].shape[0]
        frame = ImageList(levels[0].new_empty(batch, 3, *image_size), [image_size] * batch)
        anchors = self.model.anchor_generator(frame, levels)
        per_cell = self.model.anchor_generator.num_anchors_per_location()[0]
        return outputs, anchors, [level.shape[-1] * level.shape[-2] * per_cell for level in levels]
