"""SDXL and models distilled from it (SDXL-Turbo, LCM): a U-Net that reads two CLIP encoders, their pooled text, and the
sizes of the picture (Podell et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn

from engine.errors import ModelError
from engine.ldm.families.conditioning import Conditioning

PIPELINE = StableDiffusionXLPipeline
DENOISER = UNet2DConditionModel


def assemble(parts: dict, index: dict) -> StableDiffusionXLPipeline:
    """The loaded parts as a stock pipeline."""
    zeros = bool(index.get("force_zeros_for_empty_prompt", True))
    return PIPELINE(**parts, force_zeros_for_empty_prompt=zeros, add_watermarker=False)


def check(pipeline: StableDiffusionXLPipeline) -> None:
    """Refuse a U-Net that reads something other than pooled text and six numbers of size.

    Raises:
        ModelError: the refiner, for one.
    """
    config = pipeline.unet.config
    read = config.get("projection_class_embeddings_input_dim")
    given = 6 * (config.get("addition_time_embed_dim") or 0) + pipeline.text_encoder_2.config.projection_dim
    if config.get("addition_embed_type") != "text_time" or read != given:
        raise ModelError(
            f"The model's U-Net reads {read} numbers beside the text, an SDXL base model's reads {given}. "
            "Refiners are not supported: use a base model, or one distilled or fine-tuned from it."
        )


def encode(pipeline: StableDiffusionXLPipeline, texts: Sequence[str], device: torch.device) -> Conditioning:
    """Texts -> states (B, tokens, both widths) and pooled text (B, width).

    The empty text is zeros where the model was trained with zeros for a missing prompt, as the stock pipeline
    takes it for a missing negative prompt.
    """
    states, _, pooled, _ = pipeline.encode_prompt(list(texts), device=device, do_classifier_free_guidance=False)
    if pipeline.config.force_zeros_for_empty_prompt:
        worded = torch.tensor([bool(text) for text in texts], device=device)
        states, pooled = states * worded[:, None, None], pooled * worded[:, None]
    return Conditioning({"states": states, "pooled": pooled})


def blank(config: dict) -> Conditioning:
    """One row of the shapes that a U-Net of this config reads."""
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    width = config["cross_attention_dim"]
    return Conditioning({"states": torch.zeros(1, 4, width), "pooled": torch.zeros(1, pooled)})


def predict(
    denoiser: nn.Module,
    latents: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
    stride: int,
    timestep_cond: Tensor | None = None,
) -> Tensor:
    """What the U-Net predicts (B, C, h, w); see `stable_diffusion.predict`. The picture is said to be uncropped and of
    the size that is drawn, as the stock pipeline's default is."""
    height, width = (side * stride for side in latents.shape[-2:])
    sizes = torch.tensor([height, width, 0, 0, height, width], device=latents.device, dtype=latents.dtype)
    added = {"text_embeds": conditioning["pooled"], "time_ids": sizes.expand(len(latents), -1)}
    states = conditioning["states"]
    return denoiser(latents, timesteps, states, timestep_cond=timestep_cond, added_cond_kwargs=added).sample
