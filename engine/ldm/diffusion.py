"""Loads a Stable-Diffusion-type pipeline and offers what the engine needs of it: encode, decode, denoise with taps."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from engine.errors import ModelError
from engine.ldm.taps import Tap, capture, measure_taps

_PARTS = ("unet", "vae", "text_encoder")
# The only classes that a model folder may name: nothing of a folder's own choosing is imported.
_ALLOWED = {
    "unet": {("diffusers", "UNet2DConditionModel")},
    "vae": {("diffusers", "AutoencoderKL"), ("diffusers", "AutoencoderTiny")},
    "text_encoder": {("transformers", "CLIPTextModel")},
}


@dataclass(frozen=True)
class LdmIdentity:
    """What pins a diffusion model: its id, revision, and the sha256 over its weight files."""

    id: str
    revision: str | None
    weights_sha256: str

    def as_dict(self) -> dict:
        return {"id": self.id, "revision": self.revision, "weights_sha256": self.weights_sha256}


class LatentDiffusion:
    """A frozen latent diffusion model on one device. Images are (B, 3, H, W) in [-1, 1]; latents are scaled."""

    def __init__(
        self, pipeline: StableDiffusionPipeline, identity: LdmIdentity, device: torch.device, which: str = "all"
    ):
        self.unet = pipeline.unet.to(device).eval().requires_grad_(False)
        self.vae = pipeline.vae.to(device).eval().requires_grad_(False)
        self.text_encoder = pipeline.text_encoder.to(device).eval().requires_grad_(False)
        self.tokenizer = pipeline.tokenizer
        self.identity, self.device, self.dtype = identity, device, self.unet.dtype
        # DDIM as in the paper, whatever sampler the folder names; "leading" with offset 1 ends at t = 1.
        self.scheduler_config = {**pipeline.scheduler.config, "clip_sample": False}
        self.scheduler = DDIMScheduler.from_config(self.scheduler_config)
        self.latent_stride: int = pipeline.vae_scale_factor
        self.taps: tuple[Tap, ...] = measure_taps(self.unet.config, self.latent_stride, which)
        self.tapped = which
        self.latent_channels: int = self.unet.config.in_channels
        self._prompt_cache: dict[str, Tensor] = {}

    @property
    def alignment(self) -> int:
        """Image sides must be multiples of so many pixels."""
        return self.latent_stride * 2 ** (len(self.unet.config.down_block_types) - 1)

    def capture(self):
        """Record the tapped features of the calls made inside; see `engine.ldm.taps.capture`."""
        return capture(self.unet, self.tapped)

    @torch.no_grad()
    def encode_images(self, pixels: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """Images -> latents (B, C, H/s, W/s). With generators (one an image) a KL encoder is sampled, else its mode."""
        encoded = self.vae.encode(pixels.to(self.device, self.dtype))
        if hasattr(encoded, "latents"):
            latents = encoded.latents
        elif generators is None:
            latents = encoded.latent_dist.mode()
        else:
            mean, std = encoded.latent_dist.mean, encoded.latent_dist.std
            latents = mean + std * draw_noise(mean.shape[1:], generators).to(mean)
        return latents * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> images (B, 3, H, W) float32, clamped to [-1, 1]."""
        return self.vae.decode(latents / self.vae.config.scaling_factor).sample.float().clamp(-1, 1)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Texts -> states (B, tokens, width); repeated texts are encoded once."""
        missing = [text for text in dict.fromkeys(prompts) if text not in self._prompt_cache]
        if missing:
            if len(self._prompt_cache) > 4096:
                self._prompt_cache.clear()
                missing = list(dict.fromkeys(prompts))
            ids = self.tokenizer(
                missing,
                padding="max_length",
                truncation=True,
                max_length=self.tokenizer.model_max_length,
                return_tensors="pt",
            ).input_ids
            states = self.text_encoder(ids.to(self.device)).last_hidden_state.to(self.dtype)
            self._prompt_cache.update(zip(missing, states, strict=True))
        return torch.stack([self._prompt_cache[text] for text in prompts])

    @torch.no_grad()
    def features(
        self, latents: Tensor, timestep: int, noise: Tensor, prompts: Sequence[str] | None = None
    ) -> list[Tensor]:
        """What the adapter reads of real latents: the latents with the noise of one step, then the taps, finest first.

        Args:
            latents, noise: (B, C, h, w); timestep: noise level; prompts: B texts, None for the empty prompt.
        """
        timesteps = torch.full((len(latents),), timestep, device=self.device)
        noisy = self.scheduler.add_noise(latents, noise.to(latents), timesteps)
        states = self.encode_prompts(prompts if prompts is not None else [""] * len(latents))
        with self.capture() as record:
            self.unet(noisy, timesteps, states)
        return [noisy, *record.grouped()]


def draw_noise(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """(len(generators), *shape) float32 on the CPU: each item's noise comes from its own generator alone."""
    return torch.stack([torch.randn(tuple(shape), generator=g) for g in generators])


def choose_device(name: str) -> torch.device:
    """The torch device of a `ldm.device` setting; "auto" takes CUDA, then MPS, then the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError("ldm.device is cuda, but torch sees no GPU here. Set ldm.device to cpu or auto.")
    return torch.device(name)


def load_ldm(
    source: str | Path,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    taps: str = "all",
) -> LatentDiffusion:
    """Load a pipeline from a local folder or a hub id; safetensors only, no code of the model's own.

    Args:
        taps: which blocks' features are read: all, down, mid or up.

    Raises:
        ModelError: missing, not a Stable-Diffusion-type pipeline, no safetensors, broken or non-finite weights,
            or a hub id without a pinned revision.
    """
    folder = find_ldm(source, revision)
    _check_index(folder)
    with _quiet():
        pipeline = _open_pipeline(folder, dtype)
    for part in _PARTS:
        _check_finite(getattr(pipeline, part), folder / part)
    identity = LdmIdentity(str(source) if revision else folder.name, revision, hash_weights(folder))
    return LatentDiffusion(pipeline, identity, choose_device(device), taps)


def _open_pipeline(folder: Path, dtype: str) -> StableDiffusionPipeline:
    try:
        return StableDiffusionPipeline.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            dtype=getattr(torch, dtype),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            low_cpu_mem_usage=True,
        )
    except Exception as error:  # diffusers raises many types for one thing: the folder does not load
        raise ModelError(
            f"{folder} does not load as a Stable Diffusion pipeline: {str(error).splitlines()[0]} "
            "Weights must be safetensors; export the model again with save_pretrained(safe_serialization=True)."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' notes and bars on every file that they open."""
    previous = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error(), transformers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar(), transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(previous[0]), transformers_logging.set_verbosity(previous[1])
        diffusers_logging.enable_progress_bar(), transformers_logging.enable_progress_bar()


def find_ldm(source: str | Path, revision: str | None = None) -> Path:
    """The local folder of a diffusion model: `source` itself, "world" for the embedded one, or a hub snapshot."""
    from engine.ldm import embedded_folder

    if str(source) == "world":
        return embedded_folder()
    path = Path(source)
    if (path / "model_index.json").is_file():
        return path
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise ModelError(
            f"No diffusion model in {source}: there is no model_index.json. Give a folder saved by diffusers, "
            "a hub id (owner/name), or 'world' for the embedded model."
        )
    if not revision:
        raise ModelError(
            f"The hub id {source} has no pinned revision, so a later change on the hub would change your data. "
            "Set ldm.revision to a commit hash of that repository."
        )
    try:
        return Path(StableDiffusionPipeline.download(str(source), revision=revision, use_safetensors=True))
    except Exception as error:
        raise ModelError(f"Could not fetch {source} at {revision}: {str(error).splitlines()[0]}") from error


def hash_weights(folder: Path) -> str:
    """sha256 over the safetensors and config files of the model's parts, in a fixed order."""
    total = hashlib.sha256()
    for part in _PARTS:
        for path in sorted([*(folder / part).glob("*.safetensors"), folder / part / "config.json"]):
            total.update(f"{part}/{path.name}".encode())
            with path.open("rb") as handle:
                total.update(hashlib.file_digest(handle, "sha256").digest())
    return total.hexdigest()


def _check_index(folder: Path) -> None:
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{folder / 'model_index.json'} cannot be read: {error}") from None
    for part, allowed in _ALLOWED.items():
        named = index.get(part) if isinstance(index, dict) else None
        if not isinstance(named, list) or tuple(named) not in allowed:
            names = " or ".join(sorted(name for _, name in allowed))
            raise ModelError(f"{folder}/model_index.json names {named!r} as its {part}; this engine reads {names}.")


def _check_finite(module: nn.Module, where: Path) -> None:
    bad = [name for name, p in module.named_parameters() if not torch.isfinite(p).all()]
    if bad:
        raise ModelError(f"{where} holds weights that are not finite, {bad[0]} first. Fetch or train the model again.")
