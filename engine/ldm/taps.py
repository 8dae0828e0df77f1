"""Which features of a U-Net the adapter reads: found on the model itself, never typed by hand.

As in DiffusionEngine's design, the output of every down block, the mid block and every up block is tapped,
grouped by spatial size, and concatenated on channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn


@dataclass(frozen=True)
class Tap:
    """One level of the tapped pyramid: stride in image pixels, channels, and the blocks that make it up."""

    stride: int
    channels: int
    blocks: tuple[str, ...]


@dataclass
class Capture:
    """Outputs of the tapped blocks of one U-Net call, by block name, in call order."""

    outputs: dict[str, Tensor] = field(default_factory=dict)

    def grouped(self) -> list[Tensor]:
        """One tensor (B, C, h, w) per spatial size, finest first; blocks concatenated in call order."""
        sizes: dict[int, list[Tensor]] = {}
        for output in self.outputs.values():
            sizes.setdefault(output.shape[-1] * output.shape[-2], []).append(output)
        return [torch.cat(sizes[size], dim=1) for size in sorted(sizes, reverse=True)]


def tapped_blocks(unet: nn.Module, which: str = "all") -> dict[str, nn.Module]:
    """Every down block, the mid block and every up block, in call order; or those of `which`: down, mid or up."""
    blocks = {f"down_blocks.{i}": block for i, block in enumerate(unet.down_blocks)}
    if unet.mid_block is not None:
        blocks["mid_block"] = unet.mid_block
    blocks |= {f"up_blocks.{i}": block for i, block in enumerate(unet.up_blocks)}
    return {name: block for name, block in blocks.items() if which == "all" or name.startswith(which)}


@contextmanager
def capture(unet: nn.Module, which: str = "all") -> Iterator[Capture]:
    """Record the tapped blocks' outputs of the U-Net calls made inside; later calls overwrite earlier ones."""
    record = Capture()

    def hook_for(name: str):
        def hook(_module, _inputs, output):
            # A down block returns its output and the skip connections.
            record.outputs[name] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [block.register_forward_hook(hook_for(name)) for name, block in tapped_blocks(unet, which).items()]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def measure_taps(unet_config: dict, latent_stride: int, which: str = "all") -> tuple[Tap, ...]:
    """Strides and channels of a U-Net's taps, measured by one call on a copy without memory ("meta" device).

    Args:
        unet_config: config of a `UNet2DConditionModel`.
        latent_stride: image pixels per latent cell.
        which: the blocks that are tapped: all, down, mid or up.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_config)
        side = 2 ** (len(unet.down_blocks) + 1)
        width = unet.config.cross_attention_dim
        states = torch.zeros(1, 4, width if isinstance(width, int) else width[0])
        sample = torch.zeros(1, unet.config.in_channels, side, side)
        with capture(unet, which) as record, torch.no_grad():
            unet(sample, torch.zeros(1), states)
    by_size: dict[int, list[str]] = {}
    for name, output in record.outputs.items():
        by_size.setdefault(output.shape[-1], []).append(name)
    return tuple(
        Tap(
            stride=latent_stride * side // size,
            channels=sum(record.outputs[name].shape[1] for name in by_size[size]),
            blocks=tuple(by_size[size]),
        )
        for size in sorted(by_size, reverse=True)
    )
