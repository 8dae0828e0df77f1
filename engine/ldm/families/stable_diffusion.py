"""Stable Diffusion 1.x and 2.x, and models distilled from them (LCM, SD-Turbo): a U-Net that reads one CLIP encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from engine.errors import ModelError
from engine.ldm.families.conditioning import Conditioning

PIPELINE = StableDiffusionPipeline
DENOISER = UNet2DConditionModel


def assemble(parts: dict, index: dict) -> StableDiffusionPipeline:
    """The loaded parts as a stock pipeline, without the filter of pictures."""
    return PIPELINE(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def check(pipeline: StableDiffusionPipeline) -> None:
    """Refuse a U-Net that wants a condition which this family does not give.

    Raises:
        ModelError: it embeds classes, images or sizes.
    """
    config = pipeline.unet.config
    wanted = [key for key in ("class_embed_type", "addition_embed_type", "encoder_hid_dim_type") if config.get(key)]
    if wanted:
        raise ModelError(
            f"The model's U-Net has {wanted[0]}={config[wanted[0]]!r}: it wants a condition that Stable Diffusion 1.x "
            "and 2.x do not have. Use a text-to-image model of a supported family."
        )


def encode(pipeline: StableDiffusionPipeline, texts: Sequence[str], device: torch.device) -> Conditioning:
    """Texts -> states (B, tokens, width)."""
    states, _ = pipeline.encode_prompt(list(texts), device, 1, False)
    return Conditioning({"states": states})


def blank(config: dict) -> Conditioning:
    """One row of the shapes that a U-Net of this config reads."""
    width = config["cross_attention_dim"]
    return Conditioning({"states": torch.zeros(1, 4, width if isinstance(width, int) else width[0])})


def predict(
    denoiser: nn.Module,
    latents: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
    stride: int,
    timestep_cond: Tensor | None = None,
) -> Tensor:
    """What the U-Net predicts (B, C, h, w) of noisy latents (B, C, h, w) at timesteps (B,).

    Args:
        stride: image pixels per latent cell.
        timestep_cond: (B, time_cond_proj_dim) embedding of the guidance scale, for a model distilled with it.
    """
    return denoiser(latents, timesteps, conditioning["states"], timestep_cond=timestep_cond).sample
