"""Batched img2img and text-to-image, which returns images and the features that the adapter labels them by.

Every item has its own seed, encode ratio, guidance, eta and prompts. Items join the batch at the step where
their encode ratio starts them, so mixed ratios share calls of the model, and an item's image does not depend on
the others in its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.ldm.diffusion import LatentDiffusion, draw_noise
from engine.ldm.samplers import make_schedule


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
) -> Samples:
    """Draw one batch.

    Args:
        sources: images to start from (B, 3, H, W) in [-1, 1], for img2img; None for text-to-image.
        size: (width, height) in pixels, for text-to-image.
        steps: denoising steps of a full run; an item runs int(steps x strength) of them, at least one.
        timestep: the noise level that the features are read at (the adapter's); None for the last step's, any.
        sampler: ddim, euler_trailing or lcm; see `engine.ldm.samplers`.
        label_pass: last_step reads the features of the sampler's last call. extra pays one more call, on the finished
            latents with fresh noise of `timestep`, and leaves the images as they are.

    Raises:
        ModelError: with last_step, the sampler's last step is at another noise level than the adapter's.
    """
    schedule = make_schedule(ldm.scheduler_config, sampler, steps)
    if label_pass == "last_step":
        check_last_step(schedule.timesteps[-1], timestep)
    generators = [torch.Generator().manual_seed(request.seed) for request in requests]
    if sources is None:
        width, height = size or ldm.default_size
        shape = (ldm.latent_channels, height // ldm.latent_stride, width // ldm.latent_stride)
        starts = [0] * len(requests)
        latents = draw_noise(shape, generators).to(ldm.device) * schedule.start_scale
    else:
        starts = [steps - max(1, min(int(steps * request.strength), steps)) for request in requests]
        clean = ldm.encode_images(sources, generators)
        noise = draw_noise(clean.shape[1:], generators).to(clean)
        level = schedule.alphas[starts].to(clean)[:, None, None, None]
        latents = level.sqrt() * clean + (1 - level).sqrt() * noise
    features: list[Tensor] = []
    for index, t in enumerate(schedule.timesteps):
        active = [i for i, start in enumerate(starts) if start <= index]
        if not active:
            continue
        with ldm.capture() as record, torch.no_grad():
            predicted = _guided_prediction(ldm, latents[active], t, [requests[i] for i in active])
        if index == steps - 1 and label_pass == "last_step":
            # The conditional half comes first in the batch (see _guided_prediction).
            features = [latents[active], *(level[: len(active)] for level in record.grouped())]
        eta = torch.tensor([requests[i].eta for i in active], device=latents.device)
        # Drawn for each item that wants noise and from its own generator, so that a batch mate never shifts it.
        noise = torch.zeros_like(latents[active])
        for row, i in enumerate(active):
            if schedule.draws_noise(index, requests[i].eta):
                noise[row] = torch.randn(latents.shape[1:], generator=generators[i]).to(latents)
        updated = schedule.step(index, predicted, latents[active], eta, noise)
        latents = latents.clone()
        latents[active] = updated
    if label_pass == "extra":
        level = schedule.timesteps[-1] if timestep is None else timestep
        noise = draw_noise(latents.shape[1:], generators)
        features = ldm.features(latents, level, noise, [request.prompt for request in requests])
    return Samples(ldm.decode(latents), features)


def last_timestep(ldm: LatentDiffusion, sampler: str, steps: int) -> int:
    """The noise level of a sampler's last step: where an adapter must have been trained to read it."""
    return make_schedule(ldm.scheduler_config, sampler, steps).timesteps[-1]


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


def _guided_prediction(ldm: LatentDiffusion, latents: Tensor, t: int, requests: Sequence[SampleRequest]) -> Tensor:
    """The model's prediction with classifier-free guidance for the items that ask for it (scale above 1)."""
    scales = torch.tensor([request.guidance_scale for request in requests])
    guided = [] if ldm.embeds_guidance else [i for i, request in enumerate(requests) if request.guidance_scale > 1]
    prompts = [r.prompt for r in requests] + [requests[i].negative_prompt for i in guided]
    batch = torch.cat([latents, latents[guided]]) if guided else latents
    timesteps = torch.full((len(batch),), t, device=batch.device)
    predicted = ldm.denoise(batch, timesteps, ldm.encode_prompts(prompts), scales)
    conditional = predicted[: len(requests)]
    if not guided:
        return conditional
    unconditional = predicted[len(requests) :]
    scale = scales[guided].to(predicted)[:, None, None, None]
    result = conditional.clone()
    result[guided] = unconditional + scale * (conditional[guided] - unconditional)
    return result
