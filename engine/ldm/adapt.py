"""`de adapt-ldm`: fine-tune a diffusion model to the user's own images, so that it can draw their domain."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from torch import Tensor, nn
from torchvision.transforms import v2

from engine.config import as_dict
from engine.data.pixels import Frame, to_model
from engine.ldm.autoencoder import train_decoder
from engine.ldm.denoising import Batch, DenoisingSettings, DenoisingTrainer
from engine.ldm.diffusion import LatentDiffusion, load_ldm
from engine.ldm.families.conditioning import Conditioning
from engine.ldm.folder import ADAPTATION, INDEX, find_ldm, hash_weights, read_index
from engine.ldm.training_pictures import read_training_pictures
from engine.sections import Settings

_SMALL = 100_000_000  # parameters: below, the whole denoiser is tuned; above, LoRA
_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]  # the projections of diffusers' attention, in every family
_CONFIG = "config.json"
_KEPT_SUFFIXES = {".json", ".txt", ".model", ".safetensors"}
_WITHOUT_WORDS = 0.3  # share of samples that are trained with the empty prompt, as the adapter reads


class _Trainee(nn.Module):
    """A denoiser of any family, called as the training loop calls a U-Net: (latents, timesteps, conditioning)."""

    def __init__(self, ldm: LatentDiffusion):
        super().__init__()
        self.denoiser, self.ldm = ldm.denoiser, ldm  # LatentDiffusion is no Module

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("denoiser"), name)  # its blocks and attention processors

    def forward(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> UNet2DConditionOutput:
        return UNet2DConditionOutput(sample=self.ldm.denoise(latents, timesteps, conditioning))


def adapt_ldm(
    data: Path, ldm: str | Path, out: Path, settings: Settings, style_of_unlabelled: str | None = None
) -> dict:
    """Fine-tune `ldm` to the training images of `data` and save a whole pipeline folder `out`. Resumes.

    Args:
        data: a dataset folder (only the images of train.json are used, and with generation.unlabelled those of
            unlabelled.json, which are drawn from too), or a folder of images without any json.
        style_of_unlabelled: words behind the prompts of the pictures of unlabelled.json, in place of generation.style:
            where they are of another domain, the model learns which words stand for it.

    Returns:
        The record that is also written to `out`/adaptation.json.

    Raises:
        DatasetError: no training images. ModelError: the model cannot be loaded.
    """
    options = settings.adapt_ldm
    folder = find_ldm(ldm, settings.ldm.revision)
    model = load_ldm(ldm, settings.ldm.revision, "float32", settings.ldm.device)  # checks everything, gives the taps
    frame = Frame(settings.ldm.resolution, model.alignment)
    pictures = read_training_pictures(data, frame, settings, style_of_unlabelled)
    denoiser, vae = model.denoiser, model.vae
    count = sum(p.numel() for p in denoiser.parameters())
    full = options.method == "full" or (options.method == "auto" and count < _SMALL)
    denoiser.train().requires_grad_(full)
    tuned = None
    if not full:
        torch.manual_seed(options.seed)
        lora = LoraConfig(r=options.lora_rank, lora_alpha=options.lora_rank, target_modules=_ATTENTION)
        tuned = get_peft_model(denoiser, lora)  # puts its layers into the denoiser itself
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
        return Batch(model.encode_images(pixels), model.encode_prompts(prompts))

    trainer = DenoisingTrainer(
        _Trainee(model),
        lambda conditioning: conditioning,
        {model.entry.denoiser: denoiser},
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
    if tuned is not None:
        tuned.merge_and_unload()
    decoder = None
    if options.decoder_steps and isinstance(vae, AutoencoderTiny):

        def draw_views(generator: torch.Generator) -> Tensor:
            return draw_pixels(generator)[0].to(model.device)

        decoder = train_decoder(vae, draw_views, options.decoder_steps, 1e-3, options.seed)
    _save(folder, model, out, {model.entry.denoiser} if decoder is None else {model.entry.denoiser, "vae"})
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
    (out / ADAPTATION).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return record


def _save(base: Path, model: LatentDiffusion, out: Path, tuned: set[str]) -> None:
    """The tuned parts at the base's precision, everything else as the base has it, filters of pictures left out."""
    entry, index = read_index(base)
    for part in entry.parts:
        shutil.rmtree(out / part, ignore_errors=True)
        if part in tuned:
            module = getattr(model.pipeline, part)
            module.to("cpu", _stored_dtype(base / part)).save_pretrained(out / part, safe_serialization=True)
            # The same parts in another state: diffusers would note the base's path on this machine, and with it the
            # same weights would have another identity elsewhere.
            shutil.copyfile(base / part / _CONFIG, out / part / _CONFIG)
            continue
        (out / part).mkdir(parents=True)
        for path in (base / part).iterdir():
            if path.suffix in _KEPT_SUFFIXES:
                shutil.copyfile(path, out / part / path.name)
    left_out = {k: [None, None] for k, v in index.items() if isinstance(v, list) and k not in entry.parts}
    (out / INDEX).write_text(json.dumps({**index, **left_out}, indent=2) + "\n", encoding="utf-8")
    if (base / "engine.json").is_file():
        shutil.copyfile(base / "engine.json", out / "engine.json")


def _stored_dtype(folder: Path) -> torch.dtype:
    with safe_open(next(folder.glob("*.safetensors")), "pt") as handle:
        return handle.get_tensor(next(iter(handle.keys()))).dtype


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
