"""Batched img2img and text-to-image by DDIM, which returns images and the last step's features in one pass.

Every item has its own seed, encode ratio, guidance, eta and prompts. Items join the batch at the step where
their encode ratio starts them, so mixed ratios share U-Net calls, and an item's image does not depend on
the others in its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.ldm.diffusion import LatentDiffusion, draw_noise


@dataclass(frozen=True)
class SampleRequest:
    """One image to draw. `strength` is the encode ratio in (0, 1]; it is ignored without a source image."""

    seed: int
    prompt: str = ""
    negative_prompt: str = ""
    strength: float = 1.0
    guidance_scale: float = 1.0
    eta: float = 0.0


@dataclass(frozen=True)
class Samples:
    """Images (B, 3, H, W) float32 in [-1, 1], and what the last step's U-Net call saw and computed: its noisy latents,
    then the taps of the conditional half, finest level first."""

    images: Tensor
    features: list[Tensor]


def sample(
    ldm: LatentDiffusion,
    requests: Sequence[SampleRequest],
    steps: int,
    sources: Tensor | None = None,
    size: tuple[int, int] | None = None,
    timestep: int | None = None,
) -> Samples:
    """Draw one batch.

    Args:
        sources: images to start from (B, 3, H, W) in [-1, 1], for img2img; None for text-to-image.
        size: (width, height) in pixels, for text-to-image.
        steps: denoising steps of a full run; an item runs int(steps x strength) of them, at least one.
        timestep: the noise level that the last step must be at (the adapter's); None for any.

    Raises:
        ModelError: the sampler's last step is at another noise level than the adapter's.
    """
    scheduler = ldm.scheduler
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps.tolist()
    check_last_step(timesteps[-1], timestep)
    generators = [torch.Generator().manual_seed(request.seed) for request in requests]
    if sources is None:
        width, height = size or (ldm.unet.config.sample_size * ldm.latent_stride,) * 2
        shape = (ldm.unet.config.in_channels, height // ldm.latent_stride, width // ldm.latent_stride)
        starts = [0] * len(requests)
        latents = draw_noise(shape, generators).to(ldm.device, ldm.dtype) * scheduler.init_noise_sigma
    else:
        starts = [steps - max(1, min(int(steps * request.strength), steps)) for request in requests]
        clean = ldm.encode_images(sources, generators)
        noise = draw_noise(clean.shape[1:], generators).to(clean)
        begin = torch.tensor([timesteps[start] for start in starts], device=clean.device)
        latents = scheduler.add_noise(clean, noise, begin)
    features: list[Tensor] = []
    for index, t in enumerate(timesteps):
        active = [i for i, start in enumerate(starts) if start <= index]
        if not active:
            continue
        last = index == len(timesteps) - 1
        with ldm.capture() as record, torch.no_grad():
            predicted = _guided_prediction(ldm, latents[active], t, [requests[i] for i in active])
        if last:
            # The conditional half comes first in the batch (see _guided_prediction).
            features = [latents[active], *(level[: len(active)] for level in record.grouped())]
        eta = torch.tensor([requests[i].eta for i in active], device=latents.device)
        # Drawn for every item with eta > 0 and from its own generator, so that a batch mate never shifts it.
        variance = torch.zeros_like(latents[active])
        for row, i in enumerate(active):
            if requests[i].eta > 0:
                variance[row] = torch.randn(latents.shape[1:], generator=generators[i]).to(latents)
        updated = _ddim_step(scheduler, predicted, t, latents[active], eta, variance)
        latents = latents.clone()
        latents[active] = updated
    return Samples(ldm.decode(latents), features)


def check_last_step(last: int, timestep: int | None) -> None:
    """Refuse a sampler whose last step is at another noise level than the adapter was trained at."""
    if timestep is not None and last != timestep:
        raise ModelError(
            f"The sampler's last step is at t = {last}, but the adapter was trained at t = {timestep}: its boxes would "
            'be wrong. Use timestep_spacing "leading" with steps_offset 1 (ends at t = 1), or train the adapter with '
            f"--set adapter.timestep={last}."
        )


def _guided_prediction(ldm: LatentDiffusion, latents: Tensor, t: int, requests: Sequence[SampleRequest]) -> Tensor:
    """The U-Net's prediction with classifier-free guidance for the items that ask for it (scale above 1)."""
    guided = [i for i, request in enumerate(requests) if request.guidance_scale > 1]
    prompts = [r.prompt for r in requests] + [requests[i].negative_prompt for i in guided]
    batch = torch.cat([latents, latents[guided]]) if guided else latents
    timesteps = torch.full((len(batch),), t, device=batch.device)
    predicted = ldm.unet(batch, timesteps, ldm.encode_prompts(prompts)).sample
    conditional = predicted[: len(requests)]
    if not guided:
        return conditional
    unconditional = predicted[len(requests) :]
    scale = torch.tensor([requests[i].guidance_scale for i in guided], device=batch.device, dtype=batch.dtype)
    result = conditional.clone()
    result[guided] = unconditional + scale[:, None, None, None] * (conditional[guided] - unconditional)
    return result


def _ddim_step(scheduler, predicted: Tensor, t: int, latents: Tensor, eta: Tensor, variance_noise: Tensor) -> Tensor:
    """One DDIM update (Song et al. 2021, eq. 12 and 16) with an eta per item."""
    previous = t - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    alpha = scheduler.alphas_cumprod[t].to(latents)
    alpha_previous = (scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.final_alpha_cumprod).to(
        latents
    )
    if scheduler.config.prediction_type == "v_prediction":
        clean = alpha.sqrt() * latents - (1 - alpha).sqrt() * predicted
        noise = alpha.sqrt() * predicted + (1 - alpha).sqrt() * latents
    elif scheduler.config.prediction_type == "epsilon":
        noise = predicted
        clean = (latents - (1 - alpha).sqrt() * noise) / alpha.sqrt()
    else:
        raise ModelError(
            f"The model predicts '{scheduler.config.prediction_type}'; this sampler knows epsilon and v_prediction."
        )
    variance = (1 - alpha_previous) / (1 - alpha) * (1 - alpha / alpha_previous)
    deviation = eta.to(latents)[:, None, None, None] * variance.clamp(min=0).sqrt()
    direction = (1 - alpha_previous - deviation.square()).clamp(min=0).sqrt() * noise
    return alpha_previous.sqrt() * clean + direction + deviation * variance_noise
