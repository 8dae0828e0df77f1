"""transformers' loss functions of detection transformers, taught to honour ignore regions."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from engine.detection.ignore import in_ignore_region

CRITERIA = ("RTDetrLoss", "DFineLoss", "DeformableDetrImageLoss", "LwDetrImageLoss")  # what the functions compute with
CLASSIFICATION = ("vfl", "labels")  # transformers' names of the losses that say what is no object
# A logit so low that it has no loss, and as a constant no gradient. Its sigmoid must not be 0: one loss takes the log.
NOTHING = -50.0


def honouring_ignore(stock: FunctionType) -> Callable:
    """A loss function of transformers in which unmatched queries with their centre in an ignore region have no
    classification loss. Labels carry the regions as "ignore_xyxy" (M, 4), in shares of the image as their boxes.

    It is transformers' own function with another criterion under the name that it looks up, so that whatever it puts
    together for its criterion stays as it is. It computes in float32, and takes batches without any object.
    """
    name = next(name for name in CRITERIA if name in stock.__code__.co_names)
    names = {**stock.__globals__, name: type(name, (_HonoursIgnore, stock.__globals__[name]), {})}
    own = FunctionType(stock.__code__, names, stock.__name__, stock.__defaults__, stock.__closure__)

    def loss(logits: Tensor, labels, device, pred_boxes: Tensor, config, *layers, **more):
        if not torch.isfinite(pred_boxes).all():
            # The matcher would raise a bare ValueError; the training loop names the step.
            return None, {"loss_bbox": pred_boxes.sum()}, None
        with torch.autocast(pred_boxes.device.type, enabled=False):
            layers, more = [_float(t) for t in layers], {key: _float(value) for key, value in more.items()}
            return own(_float(logits), labels, device, _float(pred_boxes), config, *layers, **more)

    return loss


class _HonoursIgnore:
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.matcher = _Matcher(self.matcher)

    def get_loss(self, loss, outputs, targets, indices, num_boxes):
        if loss in CLASSIFICATION and any(len(t["ignore_xyxy"]) for t in targets):
            boxes = box_convert(outputs["pred_boxes"].detach(), "cxcywh", "xyxy")
            ignored = torch.stack(
                [
                    in_ignore_region(b, t["ignore_xyxy"], box_convert(t["boxes"], "cxcywh", "xyxy"))
                    for b, t in zip(boxes, targets, strict=True)
                ]
            )
            ignored[self._get_source_permutation_idx(indices)] = False
            outputs = {**outputs, "logits": outputs["logits"].masked_fill(ignored[..., None], NOTHING)}
        return super().get_loss(loss, outputs, targets, indices, num_boxes)


class _Matcher(nn.Module):
    """A matcher, also for batches without any object."""

    def __init__(self, stock: nn.Module):
        super().__init__()
        self.stock = stock

    def forward(self, outputs, targets, *args, **kwargs):
        if not any(len(t["boxes"]) for t in targets):
            none = torch.zeros(0, dtype=torch.int64)
            return [(none, none) for _ in targets]
        return self.stock(outputs, targets, *args, **kwargs)


def _float(value):
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
