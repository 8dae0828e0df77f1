"""A latent diffusion model of Stable Diffusion 2's size, its weights random, made on the device: to measure speed."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from engine.ldm.diffusion import LatentDiffusion, LdmIdentity
from engine.ldm.embedded import build_scheduler, build_tokenizer
from engine.ldm.families import STABLE_DIFFUSION

# Widths of the U-Net's stages, its attention heads, of the autoencoder, and width and depth of the text encoder.
SIZES = {
    "sd2-random": ((320, 640, 1280, 1280), (5, 10, 20, 20), (128, 256, 512, 512), 1024, 23),
    "sd2-random-tiny": ((32, 64, 64, 64), (1, 2, 2, 2), (32, 32, 32, 32), 64, 2),  # to try the program without a GPU
}


def build(name: str, dtype: torch.dtype, device: torch.device) -> LatentDiffusion:
    """The model `name` of SIZES."""
    unet, heads, vae, text, depth = SIZES[name]
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    with device:
        pipeline = StableDiffusionPipeline(
            vae=AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=vae,
                layers_per_block=2,
                latent_channels=4,
                sample_size=512,
                scaling_factor=0.18215,
            ).to(dtype),
            text_encoder=CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=49408,
                    hidden_size=text,
                    intermediate_size=4 * text,
                    num_hidden_layers=depth,
                    num_attention_heads=text // 64,
                    max_position_embeddings=tokenizer.model_max_length,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.pad_token_id,
                )
            ).to(dtype),
            tokenizer=tokenizer,
            unet=UNet2DConditionModel(
                sample_size=64,
                in_channels=4,
                out_channels=4,
                block_out_channels=unet,
                attention_head_dim=heads,
                cross_attention_dim=text,
                use_linear_projection=True,
            ).to(dtype),
            scheduler=build_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    return LatentDiffusion(STABLE_DIFFUSION, pipeline, LdmIdentity(name, None, "0" * 64), device)
