"""The pictures that a diffusion model is fitted to, each with the words that it is to know it by."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from engine.data.dataset import Dataset, splits_of
from engine.data.images import load_image
from engine.data.pixels import Frame, read_pixels, resize
from engine.data.sources import read_sources
from engine.errors import DatasetError
from engine.sections import Settings

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class TrainingPicture:
    """pixels: uint8 (3, H, W) at the working size."""

    pixels: Tensor
    prompt: str


def read_training_pictures(
    data: Path, frame: Frame, settings: Settings, style_of_unlabelled: str | None = None
) -> dict[tuple[int, int], list[TrainingPicture]]:
    """Training pictures by working size (width, height) in pixels.

    Args:
        data, style_of_unlabelled: see `engine.ldm.adapt.adapt_ldm`.

    Raises:
        DatasetError: there are none.
    """
    pictures: dict[tuple[int, int], list[TrainingPicture]] = {}
    if data.is_dir() and splits_of(data):
        dataset = read_sources(data, settings.generation.unlabelled)
        labelled = len(read_sources(data, unlabelled=False).images)  # the others stand behind them
        styled = settings
        if style_of_unlabelled is not None:
            generation = dataclasses.replace(settings.generation, style=style_of_unlabelled)
            styled = dataclasses.replace(settings, generation=generation)
        for place, record in enumerate(dataset.images):
            size = frame.size_of(record.width, record.height)
            prompt = _prompt_of(dataset, record, settings if place < labelled else styled)
            pictures.setdefault(size, []).append(TrainingPicture(read_pixels(dataset, record, size), prompt))
    elif data.is_dir():
        for path in sorted(p for p in data.rglob("*") if p.suffix.lower() in _IMAGE_SUFFIXES and not p.is_symlink()):
            image = load_image(path)
            size = frame.size_of(*image.size)
            pictures.setdefault(size, []).append(TrainingPicture(resize(image, size), ""))
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
