"""The small latent diffusion model of the embedded world: its parts, untrained.

Every part is a stock class of diffusers or transformers, so that the finished folder loads with
`StableDiffusionPipeline.from_pretrained`. Only the sizes are ours.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from engine.data.world import CLASSES, COLOURS, PLACES, SIZE

PATCH = 4  # pixels a side that one latent cell covers
LATENT_CHANNELS = 12
MAX_TOKENS = 24
_ENCODER_WIDTH = 3 * PATCH * PATCH


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer in which every word of the embedded world is one token; other text falls back to pieces."""
    words = [*CLASSES, *COLOURS, *PLACES, "a", "and", "in", "the", "with", "nothing", "scene", "photo", "of", ","]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    bpe.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=10_000, initial_alphabet=alphabet, end_of_word_suffix="</w>")
    )
    state = json.loads(bpe.to_str())["model"]
    vocab: dict[str, int] = {}
    for token in [*alphabet, *(c + "</w>" for c in alphabet), *sorted(state["vocab"], key=state["vocab"].get)]:
        vocab.setdefault(token, len(vocab))
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocab[token] = len(vocab)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps(vocab))
        merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in state["merges"]]
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_TOKENS)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A two-layer CLIP text encoder, 64 wide."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet() -> UNet2DConditionModel:
    """A three-level U-Net (strides 4, 8 and 16 px), cross-attention on the two coarse levels."""
    return UNet2DConditionModel(
        sample_size=SIZE // PATCH,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        layers_per_block=1,
        block_out_channels=(64, 96, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=8,
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, v-prediction; "leading" spacing with offset 1 ends at t = 1."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="leading",
        steps_offset=1,
    )


def build_autoencoder(patches: np.ndarray) -> AutoencoderTiny:
    """An AutoencoderTiny whose encoder is a PCA of 4x4 pixel patches in closed form; its decoder is untrained.

    A convolutional encoder of this size, trained end to end, loses more of the image than this projection
    of the same width does; and a linear latent needs no training of its own.

    Args:
        patches: (n, 48) float, RGB patches in [0, 1], ordered colour, row, column.
    """
    vae = AutoencoderTiny(
        encoder_block_out_channels=(_ENCODER_WIDTH,) * 3,
        decoder_block_out_channels=(32,) * 3,
        num_encoder_blocks=(0, 0, 0),
        num_decoder_blocks=(3, 2, 1),
        latent_channels=LATENT_CHANNELS,
    )
    mean = patches.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov((patches - mean).T))
    order = np.argsort(values)[::-1][:LATENT_CHANNELS]
    deviations = np.sqrt(values[order])
    # Half-whitened: fine detail keeps less weight than coarse colour, as in an image, but is not drowned in noise.
    deviation_out = np.sqrt(deviations / deviations[0])
    projection = (vectors[:, order] / deviations * deviation_out).T  # (latent, 48)

    identity, depth_1, depth_2, project = vae.encoder.layers
    with torch.no_grad():
        for layer in (identity, depth_1, depth_2, project):
            layer.weight.zero_()
        identity.bias.zero_()
        for colour in range(3):
            identity.weight[colour, colour, 1, 1] = 1
        # Two strided convolutions that only move pixels into channels: 3 -> 12 -> 48, channel = (colour, row, column).
        for colour in range(3):
            for row in range(PATCH):
                for column in range(PATCH):
                    half = colour * 4 + (row % 2) * 2 + column % 2
                    depth_1.weight[half, colour, row % 2 + 1, column % 2 + 1] = 1
                    whole = colour * PATCH * PATCH + row * PATCH + column
                    depth_2.weight[whole, half, row // 2 + 1, column // 2 + 1] = 1
        project.weight[:, :, 1, 1] = torch.from_numpy(projection).float()
        project.bias.copy_(torch.from_numpy(-projection @ mean).float())
    vae.encoder.requires_grad_(False)
    vae.register_to_config(scaling_factor=float(1 / np.sqrt((deviation_out**2).mean())))
    return vae


def patches_of(images: np.ndarray) -> np.ndarray:
    """(n, H, W, 3) uint8 images, H and W multiples of 4 -> (m, 48) float patches in [0, 1]: colour, row, column."""
    n, height, width, _ = images.shape
    blocks = images.reshape(n, height // PATCH, PATCH, width // PATCH, PATCH, 3).transpose(0, 1, 3, 5, 2, 4)
    return blocks.reshape(-1, _ENCODER_WIDTH).astype(np.float64) / 255


def assemble(
    vae: AutoencoderTiny, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """The parts as one stock pipeline, ready for `save_pretrained`."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
