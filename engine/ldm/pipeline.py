"""Opens a diffusion model's folder part by part, with classes that the engine names and never the folder."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers.utils import logging as transformers_logging

from engine.errors import ModelError
from engine.ldm.families import Entry
from engine.ldm.folder import read_index


def open_pipeline(folder: Path, dtype: torch.dtype) -> tuple[Entry, DiffusionPipeline]:
    """The family and the loaded parts of a folder, as its stock pipeline on the CPU.

    Raises:
        ModelError: not of a known family, no safetensors, broken or non-finite weights, or parts that do not fit.
    """
    entry, index = read_index(folder)
    with _quiet():
        try:
            parts = {part: _load_part(folder, part, *index[part], dtype) for part in entry.parts}
            pipeline = entry.load().assemble(parts, index)
        except Exception as error:  # the libraries raise many types for one thing: the folder does not load
            raise ModelError(
                f"{folder} does not load as a {index['_class_name']}: {(str(error).splitlines() or [repr(error)])[0]} "
                "Weights must be safetensors; export the model again with save_pretrained(safe_serialization=True)."
            ) from error
    entry.load().check(pipeline)
    _check_parts(entry, pipeline, folder)
    return entry, pipeline


def _load_part(folder: Path, part: str, library: str, name: str, dtype: torch.dtype):
    kind = getattr(importlib.import_module(library), name.removesuffix("Fast"))
    if part.startswith(("tokenizer", "scheduler")):
        return kind.from_pretrained(folder / part, local_files_only=True)
    upcast = part == "vae" and dtype == torch.float16
    module = kind.from_pretrained(
        folder / part, dtype=torch.float32 if upcast else dtype, use_safetensors=True, local_files_only=True
    )
    if upcast and not module.config.get("force_upcast", False):
        return module.half()
    return module  # a VAE that overflows in float16, as SDXL's does, says so in its config and stays in float32


def _check_parts(entry: Entry, pipeline: DiffusionPipeline, folder: Path) -> None:
    for part in entry.weights:
        _check_finite(getattr(pipeline, part), folder / part)
    denoiser, vae = getattr(pipeline, entry.denoiser).config, pipeline.vae.config
    if denoiser.in_channels != vae.latent_channels:
        raise ModelError(
            f"The denoiser in {folder} reads {denoiser.in_channels} channels, its autoencoder gives "
            f"{vae.latent_channels}: it wants something beside the picture, as inpainting models do. "
            "Use a text-to-image model."
        )
    if getattr(vae, "latents_mean", None) is not None or getattr(vae, "shift_factor", None):
        raise ModelError(f"The autoencoder in {folder} shifts its latents, which no supported family does.")
    kind = pipeline.scheduler.config.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction") or pipeline.scheduler.config.get("use_flow_sigmas"):
        raise ModelError(f"The model in {folder} predicts '{kind}'; the samplers know epsilon and v_prediction.")


def _check_finite(module: nn.Module, where: Path) -> None:
    bad = [name for name, p in module.named_parameters() if not torch.isfinite(p).all()]
    if bad:
        raise ModelError(f"{where} holds weights that are not finite, {bad[0]} first. Fetch or train the model again.")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' notes and bars on every file that they open."""
    previous = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error(), transformers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar(), transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # advice on configs of models that are others'
            yield
    finally:
        diffusers_logging.set_verbosity(previous[0]), transformers_logging.set_verbosity(previous[1])
        diffusers_logging.enable_progress_bar(), transformers_logging.enable_progress_bar()
