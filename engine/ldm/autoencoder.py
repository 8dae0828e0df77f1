"""Training of a tiny autoencoder's decoder; its encoder, and so the latent space, stays as it is."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from tqdm import tqdm


def train_decoder(
    vae: AutoencoderTiny,
    draw: Callable[[torch.Generator], Tensor],
    steps: int,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> dict:
    """Train the decoder to give back images from their latents.

    Args:
        draw: generator -> images (B, 3, H, W) float32 in [-1, 1]; all randomness from the generator.

    Returns:
        {"curve": mean loss of every 50 steps, "seconds": wall time}.
    """
    vae.decoder.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(vae.decoder.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    curve, running, started = [], [], time.monotonic()
    for step in tqdm(range(steps), desc="decoder", mininterval=5):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        pixels = draw(generator)
        with torch.no_grad():
            latents = vae.encode(pixels).latents
            # The decoder will meet latents with a little noise left, as the sampler's last step leaves it.
            latents += 0.02 * torch.randn(latents.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            decoded = vae.decode(latents).sample
        difference = decoded.float() - pixels
        loss = difference.abs().mean() + 2 * difference.square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        running.append(loss.item())
        if (step + 1) % 50 == 0:
            curve.append(sum(running) / len(running))
            running = []
    vae.decoder.eval().requires_grad_(False)
    return {"curve": curve, "seconds": round(time.monotonic() - started)}
