"""The card of an adapter's checkpoint, read without loading any model."""

from __future__ import annotations

import json
from pathlib import Path

from engine.errors import ModelError

FORMAT = 3
WEIGHTS, CARD = "adapter.safetensors", "adapter.json"


def read_card(folder: Path) -> dict:
    """The card of an adapter folder, checked to be one.

    Raises:
        ModelError: no adapter there, or an unreadable card.
    """
    path = folder / CARD
    if not path.is_file() or not (folder / WEIGHTS).is_file():
        raise ModelError(f"No adapter in {folder}: {CARD} and {WEIGHTS} belong there. Train one with de train-adapter.")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        if card["format"] != FORMAT:
            raise ModelError(
                f"{path} has format {card['format']}, this engine reads {FORMAT}. Train the adapter again."
            )
        for key in ("ldm", "taps", "timestep", "resolution", "head", "detr", "classes", "weights_sha256"):
            card[key]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise (
            error
            if isinstance(error, ModelError)
            else ModelError(f"{path} is not an adapter's card ({error!r}). Train the adapter again.")
        ) from None
    return card
