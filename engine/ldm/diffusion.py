"""A frozen latent diffusion model of any family behind one interface: encode, decode, denoise, tap features."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import Tensor, nn

from engine.ldm.compiled import CompiledDenoiser
from engine.ldm.device import choose_device
from engine.ldm.families import Entry
from engine.ldm.families.conditioning import Conditioning
from engine.ldm.folder import LdmIdentity, find_ldm, hash_weights, identify
from engine.ldm.pipeline import open_pipeline
from engine.ldm.prompt_length import quiet_libraries, warn_of_long_prompts
from engine.ldm.samplers import schedule_config
from engine.ldm.taps import Capture, Tap, capture, cells_per_side, measure_taps

__all__ = ["LatentDiffusion", "LdmIdentity", "choose_device", "draw_noise", "find_ldm", "hash_weights", "load_ldm"]

_REMEMBERED_BYTES = 2**29  # of encoded prompts: one of T5-XXL takes 2.4 MB


class LatentDiffusion:
    """A frozen latent diffusion model on one device. Images are (B, 3, H, W) in [-1, 1]; latents are scaled, float32,
    and carry noise in the variance-preserving form sqrt(alpha_bar) x + sqrt(1 - alpha_bar) n, whatever the sampler.

    Attributes:
        denoiser: the U-Net or transformer, a stock class of diffusers.
        scheduler: the noise schedule. DDIM as in the paper, whatever sampler the folder names.
        taps: the levels of the features, finest first.
    """

    def __init__(
        self, entry: Entry, pipeline: DiffusionPipeline, identity: LdmIdentity, device: torch.device, which: str = "all"
    ):
        self.entry, self.family, self.pipeline = entry, entry.load(), pipeline
        for part in entry.weights:
            getattr(pipeline, part).to(device).eval().requires_grad_(False)
        self.denoiser: nn.Module = getattr(pipeline, entry.denoiser)
        self.vae: nn.Module = pipeline.vae
        self.identity, self.device, self.dtype = identity, device, self.denoiser.dtype
        self.scheduler_config = schedule_config(pipeline.scheduler)
        self.scheduler = DDIMScheduler.from_config(self.scheduler_config)
        self.latent_stride: int = pipeline.vae_scale_factor
        self.latent_channels: int = self.denoiser.config.in_channels
        self.taps: tuple[Tap, ...] = measure_taps(self.denoiser.config, self.latent_stride, which, self.family)
        self.tapped = which
        self._prompt_cache: dict[tuple[int | None, str], Conditioning] = {}
        self._prompt_bytes = 0
        self._told_of_length = False
        self._compiled: CompiledDenoiser | None = None

    @property
    def tokenizer(self):
        """Of the (first) text encoder."""
        return self.pipeline.tokenizer

    @property
    def alignment(self) -> int:
        """Image sides must be multiples of so many pixels."""
        return self.latent_stride * cells_per_side(self.denoiser)

    @property
    def default_size(self) -> tuple[int, int]:
        """(width, height) in pixels that the model was made for."""
        return (self.denoiser.config.sample_size * self.latent_stride,) * 2

    @property
    def embeds_guidance(self) -> bool:
        """Whether the guidance scale is an input of the denoiser (as distilled into LCMs) and needs no second half."""
        return self.denoiser.config.get("time_cond_proj_dim") is not None

    def capture(self) -> AbstractContextManager[Capture]:
        """Record the tapped features of the calls made inside; see `engine.ldm.taps.capture`."""
        return capture(self.denoiser, self.tapped)

    def encode_images(self, pixels: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """Images -> latents (B, C, H/s, W/s). With generators (one an image) a KL encoder is sampled, else its mode."""
        return self.draw_latents(self.encode_moments(pixels), generators)

    @torch.no_grad()
    def encode_moments(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images -> mean and standard deviation (B, C, H/s, W/s) float32 of their latents, not yet scaled; no deviation
        where the encoder is not a KL encoder. It is the same for every item that starts from an image."""
        encoded = self.vae.encode(pixels.to(self.device, self.vae.dtype))
        if hasattr(encoded, "latents"):
            return encoded.latents.float(), None
        return encoded.latent_dist.mean.float(), encoded.latent_dist.std.float()

    def draw_latents(
        self, moments: tuple[Tensor, Tensor | None], generators: Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """What `encode_moments` gave -> latents (B, C, h, w); see `encode_images`."""
        latents, std = moments
        if std is not None and generators is not None:
            latents = latents + std * draw_noise(latents.shape[1:], generators).to(latents)
        return latents * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> images (B, 3, H, W) float32, clamped to [-1, 1]."""
        latents = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        return self.vae.decode(latents).sample.float().clamp(-1, 1)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], rows_per_call: int | None = None) -> Conditioning:
        """Texts -> what the denoiser is told of them, a row each; repeated texts are encoded once.

        Args:
            rows_per_call: texts that each call of the text encoder gets, the last one repeated where there are fewer,
                so that what a text gives does not depend on the others; None for one call of any number.
        """
        wanted = [(rows_per_call, text) for text in prompts]
        missing = [text for key, text in dict.fromkeys(wanted) if (key, text) not in self._prompt_cache]
        if missing and self._prompt_bytes > _REMEMBERED_BYTES:
            self._prompt_cache.clear()
            self._prompt_bytes, missing = 0, list(dict.fromkeys(prompts))
        for start in range(0, len(missing), rows_per_call or max(1, len(missing))):
            self._remember(missing[start : start + (rows_per_call or len(missing))], rows_per_call)
        return Conditioning.stack([self._prompt_cache[key] for key in wanted])

    @torch.no_grad()
    def prepare_prompts(self, wanted: Sequence[str], upcoming: Iterable[str], rows_per_call: int) -> None:
        """Have texts encoded that will be wanted now, and further ones where the call of the text encoder has room."""
        if all((rows_per_call, text) in self._prompt_cache for text in wanted):
            return
        new = (t for t in dict.fromkeys([*wanted, *upcoming]) if (rows_per_call, t) not in self._prompt_cache)
        self._remember(list(itertools.islice(new, rows_per_call)), rows_per_call)

    def _remember(self, texts: Sequence[str], rows_per_call: int | None) -> None:
        self._told_of_length = self._told_of_length or warn_of_long_prompts(self.tokenizer, texts)
        padded = [*texts, *[texts[-1]] * ((rows_per_call or len(texts)) - len(texts))]
        with quiet_libraries():
            rows = self.family.encode(self.pipeline, padded, self.device).to(self.device, self.dtype).rows()
        for text, row in zip(texts, rows, strict=False):
            kept = Conditioning({name: tensor.clone() for name, tensor in row.tensors.items()})
            self._prompt_cache[rows_per_call, text] = kept
            self._prompt_bytes += sum(t.numel() * t.element_size() for t in kept.tensors.values())

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents with the noise of timesteps (B,). In float32: in bfloat16 the noise of t = 1 rounds to none."""
        alpha = self.scheduler.alphas_cumprod[timesteps.cpu()].to(self.device)[:, None, None, None]
        return alpha.sqrt() * latents.float() + (1 - alpha).sqrt() * noise.to(self.device, torch.float32)

    def denoise(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, guidance: Tensor | None = None
    ) -> Tensor:
        """What the model predicts, noise or velocity, of noisy latents: (B, C, h, w) float32.

        Args:
            latents: (B, C, h, w); timesteps: (B,) int64; conditioning: B rows.
            guidance: (B,) scales for a model that `embeds_guidance`, none of them for 1; ignored by others.
        """
        embedded = self._embedded_guidance(len(latents), guidance)
        predicted = self.family.predict(
            self.denoiser, latents.to(self.dtype), timesteps, conditioning, self.latent_stride, embedded
        )
        return predicted.float()

    def denoise_and_read(
        self,
        latents: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        guidance: Tensor | None,
        rows: Sequence[int],
    ) -> tuple[Tensor, list[Tensor]]:
        """`denoise`, and the taps of some of its rows, finest level first; compiled where `compile` was called."""
        if self._compiled is None and not rows:
            return self.denoise(latents, timesteps, conditioning, guidance), []
        if self._compiled is None:
            with self.capture() as record:
                predicted = self.denoise(latents, timesteps, conditioning, guidance)
            return predicted, record.grouped(rows)
        embedded = self._embedded_guidance(len(latents), guidance)
        predicted, record = self._compiled(latents.to(self.dtype), timesteps, conditioning, embedded)
        return predicted.float(), record.grouped(rows) if rows else []

    def compile(self) -> None:
        """Have `denoise_and_read` run compiled code, made at its first call for each shape: minutes each.

        Raises (at that call):
            ModelError: it cannot be compiled here.
        """
        self._compiled = CompiledDenoiser(self.denoiser, self.family, self.latent_stride, self.tapped)

    def _embedded_guidance(self, rows: int, guidance: Tensor | None) -> Tensor | None:
        if not self.embeds_guidance:
            return None
        scales = torch.ones(rows) if guidance is None else guidance.float().cpu()
        width = self.denoiser.config.time_cond_proj_dim
        return self.pipeline.get_guidance_scale_embedding(scales - 1, width).to(self.device, self.dtype)

    @torch.no_grad()
    def features(
        self, latents: Tensor, timestep: int, noise: Tensor, prompts: Sequence[str] | None = None
    ) -> list[Tensor]:
        """What the adapter reads of real latents: the latents with the noise of one step, then the taps, finest first.

        Args:
            latents, noise: (B, C, h, w); timestep: noise level; prompts: B texts, None for the empty prompt.
        """
        timesteps = torch.full((len(latents),), timestep, device=self.device)
        noisy = self.add_noise(latents, noise, timesteps)
        conditioning = self.encode_prompts(prompts if prompts is not None else [""] * len(latents))
        with self.capture() as record:
            self.denoise(noisy, timesteps, conditioning)
        return [noisy, *record.grouped()]

    def memory(self, size: tuple[int, int] | None = None) -> dict:
        """Bytes that the model's weights take, by part and together, and that the tapped features of one image of
        `size` (width, height) take. What a call needs besides depends on the device's kernels and is not in it."""
        width, height = size or self.default_size
        weights = {part: _bytes_of(getattr(self.pipeline, part)) for part in self.entry.weights}
        values = sum(tap.channels * (width // tap.stride) * (height // tap.stride) for tap in self.taps)
        features = values * torch.finfo(self.dtype).bits // 8
        return {"weights": weights, "weights_total": sum(weights.values()), "features_per_image": features}


def draw_noise(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """(len(generators), *shape) float32 on the CPU: each item's noise comes from its own generator alone."""
    return torch.stack([torch.randn(tuple(shape), generator=g) for g in generators])


def load_ldm(
    source: str | Path,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    taps: str = "all",
) -> LatentDiffusion:
    """Load a model of any family from a local folder or a hub id; safetensors only, no code of the model's own.

    Args:
        taps: which blocks' features are read: all, down, mid or up.

    Raises:
        ModelError: missing, of no known family, no safetensors, broken or non-finite weights,
            or a hub id without a pinned revision.
    """
    folder = find_ldm(source, revision)
    entry, pipeline = open_pipeline(folder, getattr(torch, dtype))
    return LatentDiffusion(entry, pipeline, identify(source, revision, folder), choose_device(device), taps)


def _bytes_of(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])
