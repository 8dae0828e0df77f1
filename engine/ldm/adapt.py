"""`de adapt-ldm`: fine-tune a diffusion model to the user's own images, so that it can draw their domain."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from peft import LoraConfig
from safetensors import safe_open
from torch import Tensor
from torchvision.transforms import v2

from engine.config import Settings, as_dict
from engine.data.dataset import Dataset, read_dataset, splits_of
from engine.data.images import load_image
from engine.data.pixels import Frame, read_pixels, resize, to_model
from engine.errors import DatasetError
from engine.ldm.autoencoder import train_decoder
from engine.ldm.denoising import Batch, DenoisingSettings, DenoisingTrainer
from engine.ldm.diffusion import choose_device, find_ldm, hash_weights, load_ldm

_SMALL = 100_000_000  # parameters: below, the whole U-Net is tuned; above, LoRA
_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
_WITHOUT_WORDS = 0.3  # share of samples that are trained with the empty prompt, as the adapter reads


@dataclass(frozen=True)
class _Picture:
    pixels: Tensor  # uint8 (3, H, W) at the working size
    prompt: str


def adapt_ldm(data: Path, ldm: str | Path, out: Path, settings: Settings) -> dict:
    """Fine-tune `ldm` to the training images of `data` and save a whole pipeline folder `out`. Resumes.

    Args:
        data: a dataset folder (only train.json's images are used), or a folder of images without any json.

    Returns:
        The record that is also written to `out`/adaptation.json.

    Raises:
        DatasetError: no training images. ModelError: the model cannot be loaded.
    """
    options = settings.adapt_ldm
    folder = find_ldm(ldm, settings.ldm.revision)
    model = load_ldm(ldm, settings.ldm.revision, "float32", settings.ldm.device)  # checks everything, gives the taps
    frame = Frame(settings.ldm.resolution, model.alignment)
    pictures = _read_pictures(data, frame, settings)
    device = choose_device(settings.ldm.device)
    unet, vae = model.unet, model.vae
    full = options.method == "full" or (options.method == "auto" and sum(p.numel() for p in unet.parameters()) < _SMALL)
    unet.train().requires_grad_(full)
    if not full:
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        torch.manual_seed(options.seed)
        unet.add_adapter(LoraConfig(r=options.lora_rank, lora_alpha=options.lora_rank, target_modules=targets))
    sizes = list(pictures)
    weights = torch.tensor([float(len(pictures[size])) for size in sizes])

    def draw_pixels(generator: torch.Generator) -> tuple[Tensor, list[str]]:
        bucket = pictures[sizes[int(torch.multinomial(weights, 1, generator=generator))]]
        index = torch.randint(len(bucket), (options.batch_size,), generator=generator).tolist()
        wordless = torch.rand(options.batch_size, generator=generator) < _WITHOUT_WORDS
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
            pixels = torch.stack([_augment(bucket[i].pixels) for i in index])
        return to_model(pixels), ["" if w else bucket[i].prompt for i, w in zip(index, wordless, strict=True)]

    def draw(generator: torch.Generator) -> Batch:
        pixels, prompts = draw_pixels(generator)
        return Batch(model.encode_images(pixels).float(), model.encode_prompts(prompts))

    trainer = DenoisingTrainer(
        unet,
        lambda states: states,
        {"unet": unet},
        draw,
        model.scheduler_config,
        DenoisingSettings(
            options.steps,
            options.batch_size,
            options.learning_rate,
            min(100, options.steps // 10 + 1),
            seed=options.seed,
        ),
        out / "training" / "denoiser.safetensors",
    )
    trainer.run()
    trainer.load_average()
    if not full:
        unet.fuse_lora()
        unet.unload_lora()
    decoder = None
    if options.decoder_steps and isinstance(vae, AutoencoderTiny):
        decoder = train_decoder(vae, lambda g: draw_pixels(g)[0].to(device), options.decoder_steps, 1e-3, options.seed)
    _save(folder, model, out)
    record = {
        "base": model.identity.as_dict(),
        "method": "full" if full else "lora",
        "images": sum(len(bucket) for bucket in pictures.values()),
        "settings": as_dict(options),
        "resolution": settings.ldm.resolution,
        "curve": trainer.curve,
        "seconds": round(trainer.seconds),
        "decoder": decoder,
        "weights_sha256": hash_weights(out),
    }
    (out / "adaptation.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return record


def _save(base: Path, model, out: Path) -> None:
    """The tuned parts inside the base's pipeline, at the base's precision, with the settings that it recommends."""
    stored = next((base / "unet").glob("*.safetensors"))
    with safe_open(stored, "pt") as handle:
        dtype = handle.get_tensor(next(iter(handle.keys()))).dtype
    pipeline = StableDiffusionPipeline.from_pretrained(
        base,
        unet=model.unet.to("cpu", dtype),
        vae=model.vae.cpu(),
        local_files_only=True,
        use_safetensors=True,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out, safe_serialization=True)
    if (base / "engine.json").is_file():
        shutil.copyfile(base / "engine.json", out / "engine.json")


def _augment(pixels: Tensor) -> Tensor:
    """Mirror and zoom: a few hundred pictures become more views of one domain."""
    height, width = pixels.shape[-2:]
    transform = v2.Compose(
        [
            v2.RandomHorizontalFlip(0.5),
            v2.RandomApply([v2.RandomResizedCrop((height, width), (0.6, 1.0), (0.85, 1.18), antialias=True)], 0.5),
        ]
    )
    return transform(pixels)


def _read_pictures(data: Path, frame: Frame, settings: Settings) -> dict[tuple[int, int], list[_Picture]]:
    """Training pictures by working size."""
    pictures: dict[tuple[int, int], list[_Picture]] = {}
    if data.is_dir() and splits_of(data):
        dataset = read_dataset(data, "train")
        for record in dataset.images:
            size = frame.size_of(record.width, record.height)
            prompt = _prompt_of(dataset, record, settings)
            pictures.setdefault(size, []).append(_Picture(read_pixels(dataset, record, size), prompt))
    elif data.is_dir():
        for path in sorted(p for p in data.rglob("*") if p.suffix.lower() in _IMAGE_SUFFIXES and not p.is_symlink()):
            image = load_image(path)
            size = frame.size_of(*image.size)
            pictures.setdefault(size, []).append(_Picture(resize(image, size), ""))
    if not pictures:
        raise DatasetError(
            f"No training images in {data}. Give a dataset folder with train.json, or a folder of images."
        )
    return pictures


def _prompt_of(dataset: Dataset, record, settings: Settings) -> str:
    """The words that generation will use for this image, so that the model knows them."""
    from engine.generation.prompts import prompt_of

    if settings.adapt_ldm.prompt == "none":
        return ""
    return prompt_of(dataset, record, settings.generation)
