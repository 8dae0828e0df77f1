"""An image-text encoder (CLIP, SigLIP and their like, through transformers) for the gate of agreement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from engine.data.dataset import Dataset
from engine.data.files import file_sha256
from engine.errors import ModelError
from engine.sections import ReviewSettings

_BATCH = 32


@dataclass(frozen=True)
class ImageTextEncoder:
    """Puts pictures and words into one space, in which the cosine tells how far they agree.

    Attributes:
        model, processor: of transformers; the model has get_image_features and get_text_features.
        identity: what pins it, in json-ready values.
    """

    model: torch.nn.Module
    processor: object
    identity: dict

    @torch.no_grad()
    def images(self, dataset: Dataset) -> np.ndarray:
        """Unit rows (N, D) float32 of a dataset's images, in its order.

        Raises:
            DatasetError: an image cannot be read.
        """
        rows = []
        with tqdm(total=len(dataset.images), desc="image-text encoder", unit="image", leave=False, disable=None) as bar:
            for start in range(0, len(dataset.images), _BATCH):
                pictures = [dataset.load(image) for image in dataset.images[start : start + _BATCH]]
                inputs = self.processor(images=pictures, return_tensors="pt").to(self.model.device)
                rows.append(_unit(self.model.get_image_features(**inputs)))
                bar.update(len(pictures))
        return np.concatenate(rows) if rows else np.zeros((0, 1), np.float32)

    @torch.no_grad()
    def words(self, texts: Sequence[str]) -> np.ndarray:
        """Unit rows (N, D) float32 of texts; a text that is too long is read as far as the encoder goes."""
        rows = []
        for start in range(0, len(texts), _BATCH):
            some = list(texts[start : start + _BATCH])
            # "max_length": SigLIP was trained on padded texts and reads others wrongly; CLIP does not mind.
            inputs = self.processor(text=some, padding="max_length", truncation=True, return_tensors="pt")
            rows.append(_unit(self.model.get_text_features(**inputs.to(self.model.device))))
        return np.concatenate(rows) if rows else np.zeros((0, 1), np.float32)


def load_image_text(settings: ReviewSettings, device: torch.device) -> ImageTextEncoder:
    """The encoder of `review.encoder`: a folder saved by transformers, or a hub id at `review.encoder_revision`.

    Raises:
        ModelError: there is none, it is no encoder of images and words, its weights are not safetensors, or a hub id
            comes without a commit.
    """
    from transformers import AutoModel, AutoProcessor

    source, local = settings.encoder, Path(settings.encoder).is_dir()
    if not local and not settings.encoder_revision:
        raise ModelError(
            f"review.encoder={source} is no folder, and a hub id needs review.encoder_revision, a commit of it, so "
            "that the same model judges the next images."
        )
    where = {"local_files_only": True} if local else {"revision": settings.encoder_revision}
    try:
        model = AutoModel.from_pretrained(source, use_safetensors=True, **where).eval().to(device)
        processor = AutoProcessor.from_pretrained(source, **where)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"review.encoder: no image-text encoder can be read from {source}: {reason}") from None
    if not all(hasattr(model, name) for name in ("get_image_features", "get_text_features")):
        raise ModelError(f"review.encoder: {type(model).__name__} in {source} does not encode both images and words.")
    files = sorted(Path(source).glob("*.safetensors")) if local else []
    identity = {
        "id": Path(source).name if local else source,
        "revision": None if local else settings.encoder_revision,
        "weights_sha256": [file_sha256(file) for file in files],
    }
    return ImageTextEncoder(model, processor, identity)


def _unit(output) -> np.ndarray:
    rows: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return functional.normalize(rows.float(), dim=1).cpu().numpy()
