"""Tiny random models of every family, built of its stock classes as a hub folder would be."""

from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5Tokenizer

from engine.ldm.embedded import build_text_encoder, build_tokenizer

SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FAMILIES = ("sd1", "sd2", "turbo", "lcm", "sdxl", "pixart")


@pytest.fixture(scope="session")
def model_of(tmp_path_factory):
    """Name of a family -> folder of its tiny model, built once."""
    built: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in built:
            torch.manual_seed(0)
            built[name] = tmp_path_factory.mktemp("model") / name
            build(name).save_pretrained(built[name], safe_serialization=True)
        return built[name]

    return folder


def build(name: str):
    if name == "pixart":
        return _pixart()
    if name == "sdxl":
        return _sdxl()
    scheduler = {
        "sd1": lambda: PNDMScheduler(**SCALED, steps_offset=1, skip_prk_steps=True, set_alpha_to_one=False),
        "sd2": lambda: DDIMScheduler(
            **SCALED, steps_offset=1, set_alpha_to_one=False, prediction_type="v_prediction", clip_sample=False
        ),
        "turbo": lambda: EulerDiscreteScheduler(**SCALED, timestep_spacing="trailing"),
        "lcm": lambda: LCMScheduler(**SCALED),
    }[name]()
    tokenizer = build_tokenizer()
    return StableDiffusionPipeline(
        vae=_autoencoder(),
        text_encoder=build_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=_unet(cross_attention_dim=64, time_cond_proj_dim=16 if name == "lcm" else None),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> StableDiffusionXLPipeline:
    tokenizer = build_tokenizer()
    second = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=24,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = _unet(
        cross_attention_dim=64 + 32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 24,
    )
    return StableDiffusionXLPipeline(
        vae=_autoencoder(),
        text_encoder=build_text_encoder(tokenizer),
        text_encoder_2=second,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(**SCALED, timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    )


def _pixart() -> PixArtSigmaPipeline:
    words = [
        "▁a",
        "▁red",
        "▁blue",
        "▁house",
        "▁fish",
        "▁car",
        "▁in",
        "▁the",
        "▁sea",
        "▁",
        *"abcdefghijklmnopqrstuvwxyz",
    ]
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizer = T5Tokenizer(vocab=[*specials, *((word, -2.0 - i / 10) for i, word in enumerate(words))], extra_ids=0)
    encoder = T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0)
    )
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=6,
        cross_attention_dim=16,
        sample_size=16,
        patch_size=2,
        caption_channels=32,
    )
    return PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=_autoencoder(),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    )


def _unet(**kwargs) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=8,
        **kwargs,
    )


def _autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=0.5,
    )
