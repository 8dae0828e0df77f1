"""PixArt-Sigma (Chen et al. 2024): a transformer over patches of the latent that reads a T5 encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import PixArtSigmaPipeline, PixArtTransformer2DModel
from torch import Tensor, nn

from engine.errors import ModelError
from engine.ldm.families.conditioning import Conditioning

PIPELINE = PixArtSigmaPipeline
DENOISER = PixArtTransformer2DModel


def assemble(parts: dict, index: dict) -> PixArtSigmaPipeline:
    """The loaded parts as a stock pipeline."""
    return PIPELINE(**parts)


def check(pipeline: PixArtSigmaPipeline) -> None:
    """Refuse a transformer that wants to be told resolution and aspect ratio.

    Raises:
        ModelError: PixArt-Alpha's at 1024 px, for one.
    """
    if pipeline.transformer.use_additional_conditions:
        raise ModelError(
            "The model's transformer wants resolution and aspect ratio as conditions, as PixArt-Alpha does. "
            "Use a PixArt-Sigma model."
        )


def encode(pipeline: PixArtSigmaPipeline, texts: Sequence[str], device: torch.device) -> Conditioning:
    """Texts -> states (B, 300, width) and mask (B, 300)."""
    states, mask, _, _ = pipeline.encode_prompt(list(texts), False, device=device)
    return Conditioning({"states": states, "mask": mask})


def blank(config: dict) -> Conditioning:
    """One row of the shapes that a transformer of this config reads."""
    width = config["caption_channels"] or config["cross_attention_dim"]
    return Conditioning({"states": torch.zeros(1, 4, width), "mask": torch.ones(1, 4, dtype=torch.long)})


def predict(
    denoiser: nn.Module,
    latents: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
    stride: int,
    timestep_cond: Tensor | None = None,
) -> Tensor:
    """What the transformer predicts (B, C, h, w), without the learned variance behind it; see
    `stable_diffusion.predict`. Models distilled with a guidance embedding do not exist here."""
    predicted = denoiser(
        latents,
        encoder_hidden_states=conditioning["states"],
        encoder_attention_mask=conditioning["mask"],
        timestep=timesteps,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
    ).sample
    return predicted[:, : latents.shape[1]]
