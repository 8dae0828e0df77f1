"""Backbone -> pyramid -> head."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from engine.detection.heads import HeadSettings, build_head
from engine.detection.targets import Detections, Target


class Reader(nn.Module):
    """Pyramid and head: reads a backbone's levels. This is all that an adapter's checkpoint holds.

    Args:
        head: kind and sizes of the head; its width is that of every level behind the neck.
        channels, strides: of the backbone's levels, finest first.
        extra_levels: levels added above the coarsest by stride-2 convolutions.
        latent_channels, latent_stride: above 0, the levels come behind such latents, which a `LatentStem` reads.
    """

    def __init__(
        self,
        head: HeadSettings,
        num_classes: int,
        channels: Sequence[int],
        strides: Sequence[int],
        extra_levels: int = 0,
        latent_channels: int = 0,
        latent_stride: int = 0,
    ):
        super().__init__()
        channels, strides, width = list(channels), list(strides), head.width
        self.extra = nn.ModuleList()
        for _ in range(extra_levels):
            self.extra.append(nn.Conv2d(channels[-1], width, 3, stride=2, padding=1))
            channels.append(width)
            strides.append(strides[-1] * 2)
        # Channels of different blocks differ in scale by orders of magnitude: each gets its own before the 1x1 mapping.
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in channels)
        self.stem = LatentStem(latent_channels, latent_stride, width, channels, strides) if latent_channels else None
        if self.stem is not None:
            channels = [width] * len(channels)
        necks = {"pyramid": _pyramid, "projection": Projection}
        self.neck = necks[head.neck](channels, width)
        self.head = build_head(head, num_classes, strides)

    def loss(
        self, levels: Sequence[Tensor], image_size: tuple[int, int], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Named losses; `levels` (B, C_i, h_i, w_i) finest first, `image_size` (height, width)."""
        return self.head.loss(self._merge(levels), image_size, targets)

    @torch.no_grad()
    def detect(self, levels: Sequence[Tensor], image_size: tuple[int, int]) -> list[Detections]:
        """Boxes of each image, in pixels of `image_size` (height, width)."""
        return self.head.detect(self._merge(levels), image_size)

    def _merge(self, levels: Sequence[Tensor]) -> list[Tensor]:
        levels = [level.float() for level in levels]
        latents, levels = (levels[0], levels[1:]) if self.stem is not None else (None, levels)
        for conv in self.extra:
            levels.append(conv(levels[-1]))
        levels = [norm(level) for norm, level in zip(self.norms, levels, strict=True)]
        if self.stem is not None:
            levels = self.stem(latents, levels)
        return list(self.neck(OrderedDict((str(i), level) for i, level in enumerate(levels))).values())


def _pyramid(channels: Sequence[int], width: int) -> FeaturePyramidNetwork:
    return FeaturePyramidNetwork(list(channels), width, norm_layer=lambda c: nn.GroupNorm(16, c))


class Projection(nn.Module):
    """One 1x1 convolution and group normalisation a level, as DINO maps its backbone's levels."""

    def __init__(self, channels: Sequence[int], width: int):
        super().__init__()
        self.maps = nn.ModuleList(nn.Sequential(nn.Conv2d(c, width, 1), nn.GroupNorm(32, width)) for c in channels)

    def forward(self, levels: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
        return OrderedDict((name, m(level)) for m, (name, level) in zip(self.maps, levels.items(), strict=True))


class LatentStem(nn.Module):
    """A few trained convolutions on the noisy latent itself, which take in the frozen features level by level.

    At the last denoising step the U-Net's own features are busy with the little noise that is left; the latent that it
    is given shows edges plainly. Same idea as the spatial prior of ViT-Adapter (Chen et al. 2023).

    Args:
        latent_channels, latent_stride: of the latent. width: channels of every level that comes out.
        channels, strides: of the levels that go in, finest first, none finer than the latent.
    """

    def __init__(
        self, latent_channels: int, latent_stride: int, width: int, channels: Sequence[int], strides: Sequence[int]
    ):
        super().__init__()
        self.first = nn.Conv2d(latent_channels, width, 3, padding=1)
        ratios = [after // before for before, after in zip([latent_stride, *strides], strides, strict=False)]
        self.downs = nn.ModuleList(_Shrink(width, ratio) for ratio in ratios)
        self.maps = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.stages = nn.ModuleList(
            nn.Sequential(_Residual(width, width, 1), _Residual(width, width, 1)) for _ in channels
        )

    def forward(self, latents: Tensor, levels: Sequence[Tensor]) -> list[Tensor]:
        """(B, C, h, w) and the levels (B, C_i, h_i, w_i) -> as many (B, width, h_i, w_i)."""
        x, merged = self.first(latents), []
        for down, feature_map, stage, level in zip(self.downs, self.maps, self.stages, levels, strict=True):
            x = stage(down(x) + feature_map(level))
            merged.append(x)
        return merged


class _Shrink(nn.Module):
    """A convolution over patches of `ratio` x `ratio` cells; a last row or column that is not full counts as one."""

    def __init__(self, width: int, ratio: int):
        super().__init__()
        self.ratio = ratio
        self.conv = nn.Identity() if ratio == 1 else nn.Conv2d(width, width, ratio, stride=ratio)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        return self.conv(nn.functional.pad(x, (0, -width % self.ratio, 0, -height % self.ratio)))


class Detector(nn.Module):
    """A backbone and the reader of its levels. The backbone maps images (B, 3, H, W) in [-1, 1], and the words that go
    with them for one that reads words, to levels, finest first."""

    def __init__(self, backbone: nn.Module, reader: Reader):
        super().__init__()
        self.backbone, self.reader = backbone, reader

    def forward(
        self, pixels: Tensor, targets: Sequence[Target], texts: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Named losses."""
        return self.reader.loss(self.backbone(pixels, texts), tuple(pixels.shape[-2:]), targets)

    @torch.no_grad()
    def detect(self, pixels: Tensor, texts: Sequence[str] | None = None) -> list[Detections]:
        """Boxes in pixels of the input, for each image."""
        return self.reader.detect(self.backbone(pixels, texts), tuple(pixels.shape[-2:]))


class ConvBackbone(nn.Module):
    """A small residual network for training from nothing: levels at strides 4, 8 and 16."""

    strides = (4, 8, 16)

    def __init__(self, width: int):
        super().__init__()
        self.channels = (width, width * 3 // 2, width * 2)
        half = width // 2
        self.stem = nn.Sequential(nn.Conv2d(3, half, 3, stride=2, padding=1), nn.GroupNorm(8, half), nn.SiLU())
        self.stages = nn.ModuleList()
        before = half
        for after in self.channels:
            self.stages.append(nn.Sequential(_Residual(before, after, 2), _Residual(after, after, 1)))
            before = after

    def forward(self, pixels: Tensor, texts: Sequence[str] | None = None) -> list[Tensor]:
        """(B, 3, H, W) -> three levels; texts are not read."""
        x, levels = self.stem(pixels), []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        return levels


class _Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(8, after),
            nn.SiLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.GroupNorm(8, after),
        )
        self.skip = nn.Identity() if stride == 1 else nn.Conv2d(before, after, 1, stride=stride, bias=False)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.body(x) + self.skip(x))
