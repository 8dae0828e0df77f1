"""The adapter as a module, and its checkpoint: safetensors weights beside a json card. No pickle is ever read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from engine.adapter.card import CARD, FORMAT, WEIGHTS, read_card
from engine.config import as_dict
from engine.data.dataset import Category
from engine.data.files import write_atomically
from engine.data.pixels import Frame
from engine.detection.detector import Detector, Reader
from engine.detection.heads import HeadSettings
from engine.detection.targets import Detections
from engine.errors import ModelError
from engine.ldm.diffusion import LatentDiffusion, draw_noise
from engine.sections import AdapterSettings, DetrSettings, Settings


class LdmBackbone(nn.Module):
    """The frozen diffusion model as a backbone: real images -> noisy latents and taps at one noise level.

    Args:
        stem: what comes before the levels, for a reader with a stem: see `stem_input`; "none" for nothing.
    """

    def __init__(self, ldm: LatentDiffusion, timestep: int, stem: str = "latent"):
        super().__init__()
        self.ldm, self.timestep = ldm, timestep  # LatentDiffusion is no Module: its weights are not ours to train
        self.stem = stem

    def forward(self, pixels: Tensor, texts: Sequence[str] | None = None) -> list[Tensor]:
        return self.read(self.ldm.encode_images(pixels), texts)

    def read(self, latents: Tensor, texts: Sequence[str] | None = None) -> list[Tensor]:
        """The same from latents (B, C, h, w) of images."""
        if self.training:  # from the global random state, which the training loop sets at every step
            noise = torch.randn(latents.shape)
        else:  # the same noise for every image, so that a prediction depends on its image alone
            noise = draw_noise(latents.shape[1:], [torch.Generator().manual_seed(0)]).expand_as(latents)
        noisy, *levels = self.ldm.features(latents, self.timestep, noise, texts)
        if self.stem == "none":
            return levels
        # The picture as the decoder gives it, for that is what a generated one is.
        return [stem_input(noisy, self.ldm.decode(latents) if self.stem == "picture" else None), *levels]


def stem_input(noisy: Tensor, pictures: Tensor | None) -> Tensor:
    """What a stem reads: noisy latents (B, C, h, w), and, of a stem that reads pictures (B, 3, H, W) in [-1, 1], every
    latent cell's patch of pixels as further channels."""
    if pictures is None:
        return noisy
    patches = functional.pixel_unshuffle(pictures.to(noisy), pictures.shape[-1] // noisy.shape[-1])
    return torch.cat([noisy, patches], dim=1)


@dataclass
class Adapter:
    """A trained reader of one diffusion model's features, and the card that says what it was trained on."""

    reader: Reader
    card: dict

    @property
    def timestep(self) -> int:
        return self.card["timestep"]

    @property
    def category_ids(self) -> list[int]:
        return [c["id"] for c in self.card["classes"]]

    def on(self, ldm: LatentDiffusion) -> Detector:
        """As a detector of real images, ready to predict."""
        return build_adapter(self.reader, ldm, self.timestep, self.card["head"]["stem"]).eval()

    def detect(self, features: Sequence[Tensor], pictures: Tensor) -> list[Detections]:
        """Boxes, in their pixels, of the finished pictures (B, 3, H, W) in [-1, 1] from the features of the sampler's
        last step: noisy latents, then levels."""
        noisy, *levels = features
        stem = self.card["head"]["stem"]
        if stem != "none":
            levels = [stem_input(noisy, pictures if stem == "picture" else None), *levels]
        return self.reader.detect(levels, tuple(pictures.shape[-2:]))


def build_reader(settings: AdapterSettings, detr: DetrSettings, num_classes: int, ldm: LatentDiffusion) -> Reader:
    """An untrained reader that fits the model's taps."""
    return Reader(
        HeadSettings(settings.head, settings.width, settings.convs, detr),
        num_classes,
        [tap.channels for tap in ldm.taps],
        [tap.stride for tap in ldm.taps],
        settings.extra_levels,
        {"none": 0, "latent": ldm.latent_channels, "picture": ldm.latent_channels + 3 * ldm.latent_stride**2}[
            settings.stem
        ],
        ldm.latent_stride,
    )


def frame_of(ldm: LatentDiffusion, resolution: int) -> Frame:
    """How the adapter sees images of a dataset."""
    return Frame(resolution, ldm.alignment)


def build_adapter(reader: Reader, ldm: LatentDiffusion, timestep: int, stem: str) -> Detector:
    """The reader, with its kind of stem, on the frozen model, as a detector of real images: what is trained and
    measured."""
    return Detector(LdmBackbone(ldm, timestep, stem), reader)


def describe(ldm: LatentDiffusion, settings: Settings, timestep: int, categories: tuple[Category, ...]) -> dict:
    """The part of the card that must fit at loading."""
    head = {k: getattr(settings.adapter, k) for k in ("head", "width", "convs", "extra_levels", "stem")}
    return {
        "format": FORMAT,
        "ldm": ldm.identity.as_dict(),
        "taps": [[tap.stride, tap.channels, list(tap.blocks)] for tap in ldm.taps],
        "timestep": timestep,
        "prompt_mode": settings.adapter.prompt,
        "resolution": settings.ldm.resolution,
        "head": {**head, "taps": ldm.tapped},
        "detr": as_dict(settings.detr),
        "classes": [{"id": c.id, "name": c.name} for c in categories],
    }


def save_adapter(reader: Reader, card: dict, out: Path) -> dict:
    """Write weights, then the card that names their hash; each appears whole or not at all. Returns the card."""
    out.mkdir(parents=True, exist_ok=True)
    partial = out / (WEIGHTS + ".partial")
    save_file({k: v.contiguous() for k, v in reader.state_dict().items()}, partial)
    card = {**card, "weights_sha256": _sha256(partial)}
    os.replace(partial, out / WEIGHTS)
    write_atomically(out / CARD, (json.dumps(card, indent=1, sort_keys=True) + "\n").encode())
    return card


def load_adapter(folder: Path, ldm: LatentDiffusion) -> Adapter:
    """Load an adapter for the diffusion model in use.

    Raises:
        ModelError: it was trained on other weights or taps, its file is damaged, or weights are missing or not finite.
    """
    card = read_card(folder)
    if card["ldm"]["weights_sha256"] != ldm.identity.weights_sha256:
        raise ModelError(
            f"The adapter in {folder} was trained on the diffusion model {card['ldm']['id']} "
            f"({card['ldm']['weights_sha256'][:12]}), not on {ldm.identity.id} "
            f"({ldm.identity.weights_sha256[:12]}): it cannot read its features. "
            "Use that model, or train an adapter on this one."
        )
    taps = [[tap.stride, tap.channels, list(tap.blocks)] for tap in ldm.taps]
    if card["taps"] != taps:
        raise ModelError(f"The adapter in {folder} reads taps {card['taps']}, the model has {taps}.")
    if _sha256(folder / WEIGHTS) != card["weights_sha256"]:
        raise ModelError(
            f"{folder / WEIGHTS} is not the file that {CARD} describes (sha256 differs). Restore or retrain it."
        )
    reader = build_reader(AdapterSettings(**card["head"]), DetrSettings(**card["detr"]), len(card["classes"]), ldm)
    try:
        tensors = load_file(folder / WEIGHTS)
        reader.load_state_dict(tensors)
    except Exception as error:  # safetensors and torch raise different types for a broken file and for wrong keys
        raise ModelError(f"{folder / WEIGHTS} does not fit its card: {str(error).splitlines()[0]}") from None
    bad = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    if bad:
        raise ModelError(f"{folder / WEIGHTS} holds weights that are not finite ({bad[0]}). Train the adapter again.")
    return Adapter(reader.to(ldm.device).eval().requires_grad_(False), card)


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
