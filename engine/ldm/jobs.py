"""What goes into a stream of images (`engine.ldm.stream`), and what comes out."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import ModelError


@dataclass(frozen=True)
class SampleRequest:
    """One image to draw. `strength` is the encode ratio in (0, 1], without meaning where there is no source image;
    `eta` is DDIM's, and without meaning for other samplers."""

    seed: int
    prompt: str = ""
    negative_prompt: str = ""
    strength: float = 1.0
    guidance_scale: float = 1.0
    eta: float = 0.0


@dataclass(frozen=True)
class How:
    """What all images of a stream have in common.

    Attributes:
        steps: denoising steps of a full run; an item runs int(steps x strength) of them, at least one.
        sampler: ddim, euler_trailing or lcm; see `engine.ldm.samplers`.
        label_pass: last_step reads the features of an item's last call. extra pays one more row, of the finished
            latents with fresh noise of `timestep`, and leaves the image as it is. none reads nothing.
        timestep: the noise level that the features are read at (the adapter's); None for the last step's, any.
        guidance_share: guidance in the first share of an item's steps only; 1 is all of them.
        rows_per_call: of every call; None takes all rows that wait.
    """

    steps: int
    sampler: str = "ddim"
    label_pass: str = "last_step"
    timestep: int | None = None
    guidance_share: float = 1.0
    rows_per_call: int | None = None


@dataclass(frozen=True)
class Job:
    """An image to draw, by any name, and what the encoder said of its source (1, C, h, w): see
    `LatentDiffusion.encode_moments`; None for text-to-image.

    `kept` (h, w) bool, only with a source: cells that stay the source's while the others are drawn; None for none."""

    key: Hashable
    request: SampleRequest
    moments: tuple[Tensor, Tensor | None] | None = None
    kept: Tensor | None = None


@dataclass(frozen=True)
class Finished:
    """Latents (C, h, w) of a job, and what the labelling row saw and computed: its noisy latents, then the taps
    (C, h, w), finest level first."""

    key: Hashable
    latents: Tensor
    features: list[Tensor]


def check_last_step(last: int, timestep: int | None) -> None:
    """Refuse a sampler whose last step is at another noise level than the adapter was trained at.

    Raises:
        ModelError: it is.
    """
    if timestep is not None and last != timestep:
        raise ModelError(
            f"The sampler's last step is at t = {last}, but the adapter was trained at t = {timestep}: its boxes would "
            f"be wrong. Train the adapter at that level (--set adapter.timestep={last}), or pay one more forward at "
            "the adapter's level (--set generation.label_pass=extra)."
        )


def stack_rows(rows: Sequence[Tensor], rows_per_call: int | None) -> Tensor:
    """(C, h, w) each -> (B, C, h, w) with B = rows_per_call, the last one repeated; of None, with all of them."""
    return torch.stack([*rows, *[rows[-1]] * ((rows_per_call or len(rows)) - len(rows))])
