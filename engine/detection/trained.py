"""A trained detector as a folder: detector.json, its card, and model.safetensors."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from engine.config import as_dict, load_settings, settings_from
from engine.data.bounded_json import read_json
from engine.data.dataset import Category
from engine.data.files import file_sha256, write_atomically
from engine.detection.build import BuiltDetector, build_detector
from engine.detection.zoo.weights import FILE
from engine.errors import DatasetError, ModelError
from engine.sections import DetectorSettings

CARD, FORMAT = "detector.json", 1


def save_detector(module: nn.Module, settings: DetectorSettings, classes: tuple[Category, ...], out: Path, **more):
    """Write the weights, then the card that names their hash. Returns the card.

    A detector of transformers is written as transformers writes it, config.json beside the weights, so that
    transformers itself reads the folder too; others by the names of their state.

    Args:
        more: further entries of the card, json-ready.
    """
    out.mkdir(parents=True, exist_ok=True)
    stock = _of_transformers(module)
    if stock is not None:
        stock.config.num_queries = module.queries  # a small picture may have lowered it
        stock.save_pretrained(out)
    else:
        partial = out / f"{FILE}.partial"
        save_file({name: value.contiguous() for name, value in module.state_dict().items()}, partial)
        os.replace(partial, out / FILE)
    card = {
        "format": FORMAT,
        "classes": [{"id": category.id, "name": category.name} for category in classes],
        "settings": as_dict(settings),
        **more,
        "weights_sha256": file_sha256(out / FILE),
    }
    write_atomically(out / CARD, (json.dumps(card, indent=1, sort_keys=True) + "\n").encode())
    return card


def load_detector(folder: Path) -> tuple[BuiltDetector, dict]:
    """A detector that `save_detector` wrote, ready to predict, on the CPU, and its card.

    Raises:
        ModelError: no detector there, or one that is damaged or of another format.
    """
    card = read_card(folder)
    if file_sha256(folder / FILE) != card["weights_sha256"]:
        raise ModelError(f"{folder / FILE} is not the file that {CARD} describes (sha256 differs). Train it again.")
    settings = settings_from(as_dict(load_settings()) | {"detector": card["settings"]}, str(folder / CARD)).detector
    if (folder / "config.json").is_file():  # of transformers: its config says all sizes
        settings = dataclasses.replace(settings, weights=str(folder), revision=None, size="full", options=())
    elif settings.weights != "none":  # built as it was for weights that came from elsewhere, which these replace
        settings = dataclasses.replace(settings, weights=str(folder), revision=None)
    built = build_detector(settings, len(card["classes"]))
    if _of_transformers(built.module) is None:
        try:
            built.module.load_state_dict(load_file(folder / FILE))
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise ModelError(f"{folder / FILE} does not fit its card: {reason} Train it again.") from None
    bad = [name for name, value in built.module.state_dict().items() if not torch.isfinite(value).all()]
    if bad:
        raise ModelError(f"{folder / FILE} holds weights that are not finite ({bad[0]}). Train the detector again.")
    built.module.eval().requires_grad_(False)
    return built, card


def read_card(folder: Path) -> dict:
    """The card of a detector's folder, checked to be one.

    Raises:
        ModelError: no detector there, or an unreadable card.
    """
    path = folder / CARD
    if not path.is_file() or not (folder / FILE).is_file():
        raise ModelError(
            f"No detector in {folder}: {CARD} and {FILE} belong there. Train one with `de train-detector`."
        )
    try:
        card = read_json(path)
        if card["format"] != FORMAT:
            raise ModelError(
                f"{path} has format {card['format']}, this engine reads {FORMAT}. Train the detector again."
            )
        [(int(c["id"]), str(c["name"])) for c in card["classes"]]
        card["settings"].items(), card["weights_sha256"]
    except (DatasetError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{path} is not a detector's card ({error!r}). Train the detector again.") from None
    return card


def _of_transformers(module: nn.Module) -> PreTrainedModel | None:
    stock = getattr(module, "model", None)
    return stock if isinstance(stock, PreTrainedModel) else None
