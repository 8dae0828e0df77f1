"""torchvision's ResNet-50 as a backbone of the engine's own heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.ops import FrozenBatchNorm2d

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels, in 0 to 1


class ResNet50(nn.Module):
    """Levels at strides 8, 16 and 32. Tensors are named as torchvision names them.

    Args:
        trained: weights will be loaded: the normalisations keep their statistics, the first layers their weights.
    """

    strides, channels = (8, 16, 32), (512, 1024, 2048)

    def __init__(self, trained: bool):
        super().__init__()
        stock = resnet50(weights=None, norm_layer=FrozenBatchNorm2d if trained else nn.BatchNorm2d)
        for name, part in stock.named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, part)
        if trained:
            for part in (self.conv1, self.layer1):
                part.requires_grad_(False)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor, texts: Sequence[str] | None = None) -> list[Tensor]:
        """(B, 3, H, W) -> three levels; texts are not read."""
        x = ((pixels + 1) / 2 - self.mean) / self.deviation
        x = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        levels = []
        for layer in (self.layer2, self.layer3, self.layer4):
            x = layer(x)
            levels.append(x)
        return levels
