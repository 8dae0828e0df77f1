"""Img2img and text-to-image of one batch, with the features that the adapter labels it by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from engine.ldm.diffusion import LatentDiffusion
from engine.ldm.jobs import How, Job, SampleRequest, check_last_step, stack_rows
from engine.ldm.samplers import make_schedule
from engine.ldm.stream import Stream

__all__ = ["SampleRequest", "Samples", "check_last_step", "last_timestep", "sample"]


@dataclass(frozen=True)
class Samples:
    """Images (B, 3, H, W) float32 in [-1, 1], and what the labelling call of the model saw and computed: its noisy
    latents, then the taps of the conditional half, finest level first."""

    images: Tensor
    features: list[Tensor]


def sample(
    ldm: LatentDiffusion,
    requests: Sequence[SampleRequest],
    steps: int,
    sources: Tensor | None = None,
    size: tuple[int, int] | None = None,
    timestep: int | None = None,
    sampler: str = "ddim",
    label_pass: str = "last_step",
    guidance_share: float = 1.0,
    kept: Tensor | None = None,
) -> Samples:
    """Draw one batch; see `engine.ldm.stream` for many.

    Args:
        sources: images to start from (B, 3, H, W) in [-1, 1], for img2img; None for text-to-image.
        size: (width, height) in pixels, for text-to-image.
        steps, timestep, sampler, label_pass, guidance_share: see `How`.
        kept: (B, h, w) bool, only with sources: cells of the latents that stay the source's.

    Raises:
        ModelError: with last_step, the sampler's last step is at another noise level than the adapter's.
    """
    how = How(steps, sampler, label_pass, timestep, guidance_share)
    if sources is None:
        moments = [None] * len(requests)
    else:
        size = (sources.shape[-1], sources.shape[-2])
        mean, std = ldm.encode_moments(sources)
        moments = [(mean[i : i + 1], None if std is None else std[i : i + 1]) for i in range(len(requests))]
    stream = Stream(ldm, how, size or ldm.default_size, len(requests))
    cells = [None] * len(requests) if kept is None else kept
    jobs = (Job(i, request, moments[i], cells[i]) for i, request in enumerate(requests))
    finished = sorted(stream.run(jobs), key=lambda item: item.key)
    features = [stack_rows(levels, None) for levels in zip(*(item.features for item in finished), strict=True)]
    return Samples(ldm.decode(stack_rows([item.latents for item in finished], None)), features)


def last_timestep(ldm: LatentDiffusion, sampler: str, steps: int) -> int:
    """The noise level of a sampler's last step: where an adapter must have been trained to read it."""
    return make_schedule(ldm.scheduler_config, sampler, steps).timesteps[-1]
