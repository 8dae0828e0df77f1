"""Which features of a denoiser the adapter reads: found on the model itself, never typed by hand.

U-Nets, as in DiffusionEngine's design: the output of every down block, the mid block and every up block is tapped,
grouped by spatial size, and concatenated on channels. Transformers have one size and no stages: the output of the last
block of each third of the depth is tapped ("down", "mid" and "up" are the first, middle and last third), concatenated,
and resampled to a pyramid that begins at the latent's own stride, as ViTDet does with a plain transformer (Li et al.
2022).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional

PYRAMID_LEVELS = 4  # of a transformer's one map
_THIRDS = ("down", "mid", "up")


@dataclass(frozen=True)
class Tap:
    """One level of the tapped pyramid: stride in image pixels, channels, and the blocks that make it up."""

    stride: int
    channels: int
    blocks: tuple[str, ...]


@dataclass
class Capture:
    """Outputs of the tapped blocks of one call of the denoiser (B, C, h, w), by block name, in call order."""

    outputs: dict[str, Tensor] = field(default_factory=dict)
    latent_size: tuple[int, int] | None = None  # of a transformer's input, whose blocks return tokens

    def grouped(self, rows: Sequence[int] | None = None) -> list[Tensor]:
        """One tensor (B, C, h, w) per spatial size, finest first; blocks concatenated in call order.

        Args:
            rows: which rows of the call, None for all; the others are not copied.
        """
        if self.latent_size is not None:
            # Resampled for all rows: how a kernel rounds may depend on their number.
            levels = self._pyramid(torch.cat(list(self.outputs.values()), dim=1))
            return levels if rows is None else [level[list(rows)] for level in levels]
        chosen = self.outputs if rows is None else {name: out[list(rows)] for name, out in self.outputs.items()}
        return [torch.cat([chosen[name] for name in names], dim=1) for names in self.names()]

    def names(self) -> list[list[str]]:
        """The blocks behind each of the levels of `grouped`."""
        if self.latent_size is not None:
            return [list(self.outputs)] * PYRAMID_LEVELS
        sizes: dict[int, list[str]] = {}
        for name, output in self.outputs.items():
            sizes.setdefault(output.shape[-1] * output.shape[-2], []).append(name)
        return [sizes[size] for size in sorted(sizes, reverse=True)]

    def _pyramid(self, tokens: Tensor) -> list[Tensor]:
        """(B, C, h, w) -> levels of the latent's size and its half, quarter, eighth: bilinear up, means down."""
        levels = []
        for level in range(PYRAMID_LEVELS):
            size = tuple(side // 2**level for side in self.latent_size)
            if size[0] > tokens.shape[-2]:
                levels.append(functional.interpolate(tokens, size, mode="bilinear", align_corners=False))
            else:
                levels.append(functional.adaptive_avg_pool2d(tokens, size))
        return levels


def tapped_blocks(denoiser: nn.Module, which: str = "all") -> dict[str, nn.Module]:
    """The tapped blocks in call order: all, or those of the first (down), middle (mid) or last (up) part."""
    if hasattr(denoiser, "transformer_blocks"):
        depth = len(denoiser.transformer_blocks)
        ends = {part: math.ceil(depth * (i + 1) / len(_THIRDS)) - 1 for i, part in enumerate(_THIRDS)}
        chosen = sorted({end for part, end in ends.items() if which in ("all", part)})
        return {f"transformer_blocks.{i}": denoiser.transformer_blocks[i] for i in chosen}
    blocks = {f"down_blocks.{i}": block for i, block in enumerate(denoiser.down_blocks)}
    if denoiser.mid_block is not None:
        blocks["mid_block"] = denoiser.mid_block
    blocks |= {f"up_blocks.{i}": block for i, block in enumerate(denoiser.up_blocks)}
    return {name: block for name, block in blocks.items() if which == "all" or name.startswith(which)}


@contextmanager
def capture(denoiser: nn.Module, which: str = "all") -> Iterator[Capture]:
    """Record the tapped blocks' outputs of the denoiser calls made inside; later calls overwrite earlier ones."""
    record = Capture()

    def watch_size(_module, inputs):
        record.latent_size = tuple(inputs[0].shape[-2:])

    def hook_for(name: str):
        def hook(_module, _inputs, output):
            # A down block returns its output and the skip connections.
            output = output[0] if isinstance(output, tuple) else output
            if record.latent_size is not None:  # tokens (B, h x w, C) of patches, row by row
                patch = denoiser.config.patch_size
                output = output.transpose(1, 2).unflatten(2, tuple(side // patch for side in record.latent_size))
            record.outputs[name] = output

        return hook

    handles = [block.register_forward_hook(hook_for(name)) for name, block in tapped_blocks(denoiser, which).items()]
    if hasattr(denoiser, "transformer_blocks"):
        handles.append(denoiser.pos_embed.register_forward_pre_hook(watch_size))
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def cells_per_side(denoiser: nn.Module) -> int:
    """Sides of the latent must be multiples of so many cells for every level to fit."""
    if hasattr(denoiser, "transformer_blocks"):
        return math.lcm(denoiser.config.patch_size, 2 ** (PYRAMID_LEVELS - 1))
    return 2 ** (len(denoiser.down_blocks) - 1)


def measure_taps(
    config: dict, latent_stride: int, which: str = "all", family: ModuleType | None = None
) -> tuple[Tap, ...]:
    """Strides and channels of a denoiser's taps, measured by one call on a copy without memory ("meta" device).

    Args:
        config: config of the family's denoiser.
        latent_stride: image pixels per latent cell.
        which: the blocks that are tapped: all, down, mid or up.
        family: a module of `engine.ldm.families`; None for Stable Diffusion.
    """
    if family is None:
        from engine.ldm.families import stable_diffusion as family
    with torch.device("meta"), torch.no_grad():
        denoiser = family.DENOISER.from_config(config)
        side = 4 * cells_per_side(denoiser)
        sample = torch.zeros(1, denoiser.config.in_channels, side, side)
        with capture(denoiser, which) as record:
            family.predict(denoiser, sample, torch.zeros(1), family.blank(denoiser.config), latent_stride)
    return tuple(
        Tap(latent_stride * side // level.shape[-1], level.shape[1], tuple(names))
        for level, names in zip(record.grouped(), record.names(), strict=True)
    )
