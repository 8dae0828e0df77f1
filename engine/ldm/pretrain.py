"""`de train-ldm`: trains the embedded world's latent diffusion model from nothing."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from engine.data.world import CLASSES, COLOURS, PLACES, render_scene
from engine.ldm.autoencoder import train_decoder
from engine.ldm.card import RECORD, write_card
from engine.ldm.denoising import Batch, CaptionLoss, DenoisingSettings, DenoisingTrainer
from engine.ldm.embedded import (
    PATCH,
    assemble,
    build_autoencoder,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    patches_of,
)
from engine.ldm.taps import measure_taps

# Scenes of the diffusion model come from seeds that no labelled split uses.
FIRST_SEED = 10_000_000


# Chosen on this model (the sizes of `detr` for a CPU's sake); engine/sections.py's defaults are for large models.
RECOMMENDED = {
    "ldm": {"resolution": 64},
    "adapt_ldm": {"steps": 1000, "batch_size": 12, "learning_rate": 2e-4, "decoder_steps": 1000},
    "adapter": {
        "width": 96, "convs": 2, "extra_levels": 0, "stem": "picture", "cache": "features", "cache_views": 24,
        "steps": 600, "batch_size": 16, "learning_rate": 1.5e-3, "weight_decay": 0.05, "clip_norm": 1.0,
    },
    "detr": {
        "queries": 60, "encoder_layers": 1, "decoder_layers": 3, "attention_heads": 4, "feedforward": 128,
        "denoising_queries": 20,
    },
    "generation": {
        "steps": 20, "strength_min": 0.1, "strength_max": 0.2, "guidance_min": 1.0, "guidance_max": 1.0,
        "eta_min": 0.0, "eta_max": 0.2, "score_threshold": 0.5, "domain": "scene",
    },
    "detector": {"name": "small", "resolution": 64, "width": 64, "convs": 2, "steps": 600, "learning_rate": 1.5e-3},
}  # fmt: skip


@dataclass(frozen=True)
class PretrainSettings:
    """Sizes of the two trainings: the decoder and the denoiser."""

    scenes: int = 40_000
    steps: int = 7_000
    batch_size: int = 32
    learning_rate: float = 6e-4
    decoder_steps: int = 4000
    decoder_batch_size: int = 16
    caption_loss_weight: float = 0.2
    caption_loss_from: int = 3_000  # step; before, the model only learns to denoise
    wordless_share: float = 0.3  # of samples that come without words: what the adapter reads, and the caption loss
    first_seed: int = FIRST_SEED  # of the scenes
    seed: int = 0


# A second training that goes on from a finished model: new scenes, and more weight on knowing what is drawn.
CONTINUED = PretrainSettings(
    scenes=80_000,
    steps=9_000,
    learning_rate=5e-4,
    caption_loss_weight=1.0,
    caption_loss_from=0,
    wordless_share=0.5,
    first_seed=FIRST_SEED + 1_000_000,
    seed=1,
)


def _world_decoder(vae: AutoencoderTiny, images: np.ndarray, settings: PretrainSettings, folder: Path) -> dict:
    """Train the decoder on (n, H, W, 3) uint8 images, or load it from `folder` where that was done before."""
    weights, record = folder / "decoder.safetensors", folder / "decoder.json"
    if record.exists():
        vae.decoder.load_state_dict(load_file(weights))
        return json.loads(record.read_text())

    def draw(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(images), (settings.decoder_batch_size,), generator=generator)
        return to_pixels(images[index.numpy()])

    result = train_decoder(vae, draw, settings.decoder_steps, seed=settings.seed)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(vae.decoder.state_dict(), weights)
    record.write_text(json.dumps(result))
    return result


def to_pixels(images: np.ndarray) -> Tensor:
    """(n, H, W, 3) uint8 -> (n, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def render_many(first_seed: int, count: int) -> tuple[np.ndarray, list[str], list[str]]:
    """Scenes of consecutive seeds: (count, 64, 64, 3) uint8, captions, and the paper's prompts for them."""
    images, captions, prompts = [], [], []
    for seed in tqdm(range(first_seed, first_seed + count), desc="scenes", mininterval=5):
        scene = render_scene(seed)
        images.append(np.asarray(scene.image))
        captions.append(scene.caption)
        classes = list(dict.fromkeys(o.class_name for o in scene.objects))
        prompts.append(f"A {scene.place}, with {', '.join(classes)} in the {scene.place}")
    return np.stack(images), captions, prompts


def train_ldm(out: Path, settings: PretrainSettings, start: Path | None = None) -> dict:
    """Train and save the pipeline folder `out`; what is already in `out`/training is not trained again.

    Args:
        start: folder of a model that this function made: its denoiser and text encoder are trained further, its
            autoencoder is kept. None trains from nothing.

    Returns the record behind the model card.
    """
    torch.manual_seed(settings.seed)
    images, captions, prompts = render_many(settings.first_seed, settings.scenes)
    if start is None:
        tokenizer = build_tokenizer()
        text_encoder, unet = build_text_encoder(tokenizer), build_unet()
        vae = build_autoencoder(patches_of(images[:1000]))
        before, decoder = None, _world_decoder(vae, images[:8000], settings, out / "training")
    else:
        pipeline = StableDiffusionPipeline.from_pretrained(start, local_files_only=True, use_safetensors=True)
        tokenizer = pipeline.tokenizer  # words must keep the numbers that the text encoder knows
        text_encoder, unet, vae = pipeline.text_encoder.float(), pipeline.unet.float(), pipeline.vae.float()
        before = json.loads((start / RECORD).read_text(encoding="utf-8"))
        decoder = before["decoder"]
    latents = encode_images(vae, images)
    tokens = torch.stack([tokenize(tokenizer, texts) for texts in (captions, prompts, [""] * len(captions))])

    words = [*CLASSES, *COLOURS, *PLACES]
    held = torch.tensor([[float(word in caption.split()) for word in words] for caption in captions])

    def draw(generator: torch.Generator) -> Batch:
        index = torch.randint(len(latents), (settings.batch_size,), generator=generator)
        # Of those with words, five in seven come with their caption, the others with the paper's template.
        worded = 1 - settings.wordless_share
        shares = torch.tensor([worded * 5 / 7, worded * 2 / 7, settings.wordless_share])
        kind = torch.multinomial(shares, settings.batch_size, True, generator=generator)
        return Batch(latents[index].float(), tokens[kind, index], kind == 2, held[index])

    channels = [tap.channels for tap in measure_taps(unet.config, PATCH)]
    trainer = DenoisingTrainer(
        unet,
        lambda ids: text_encoder(ids).last_hidden_state,
        {"unet": unet, "text_encoder": text_encoder},
        draw,
        dict(build_scheduler().config),
        DenoisingSettings(settings.steps, settings.batch_size, settings.learning_rate, seed=settings.seed),
        out / "training" / "denoiser.safetensors",
        CaptionLoss(channels, len(words), settings.caption_loss_from, settings.caption_loss_weight),
    )
    trainer.run()
    trainer.load_average()
    assemble(vae, text_encoder, tokenizer, unet.half()).save_pretrained(out, safe_serialization=True)
    record = {
        "settings": dataclasses.asdict(settings),
        "denoiser": {"steps": trainer.step, "seconds": round(trainer.seconds), "curve": trainer.curve},
        "decoder": decoder,
        "psnr": reconstruction_psnr(vae, render_many(settings.first_seed + settings.scenes, 256)[0]),
        **({"before": before} if before else {}),
    }
    (out / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (out / "engine.json").write_text(json.dumps({"settings": RECOMMENDED}, indent=1) + "\n", encoding="utf-8")
    write_card(out)
    return record


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderTiny, images: np.ndarray) -> float:
    """Peak signal to noise in dB of (n, H, W, 3) uint8 images after encoding and decoding."""
    pixels = to_pixels(images)
    decoded = vae.decode(vae.encode(pixels).latents).sample.clamp(-1, 1)
    return (-10 * torch.log10(((decoded - pixels) / 2).square().mean())).item()


@torch.no_grad()
def encode_images(vae: AutoencoderTiny, images: np.ndarray, batch_size: int = 128) -> Tensor:
    """(n, H, W, 3) uint8 -> scaled latents (n, C, h, w) float16."""
    chunks = [
        (vae.encode(to_pixels(images[i : i + batch_size])).latents * vae.config.scaling_factor).half()
        for i in range(0, len(images), batch_size)
    ]
    return torch.cat(chunks)


def tokenize(tokenizer, texts: list[str]) -> Tensor:
    """Token ids (n, max length), padded and cut as the pipeline does it."""
    return tokenizer(
        texts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
