"""The picture size that a diffusion model was made for, from its small json files alone; no weights are read."""

from __future__ import annotations

from pathlib import Path

from engine.data.bounded_json import read_json
from engine.errors import DatasetError, UserError
from engine.ldm.folder import HUB_ID, INDEX, find_ldm, read_index

_MAX_CONFIG_BYTES = 2**20


def native_size(source: str | Path, revision: str | None = None) -> int | None:
    """Side in pixels of the square pictures that a model was trained on; None where its files do not say.

    Of a hub id only the json files are fetched, or taken from the hub's cache on this machine; where there is neither
    cache nor network, None.

    Args:
        source: folder, "world", or hub id.
        revision: commit of a hub id.

    Raises:
        ModelError: no such folder, a hub id without a revision, or a model of a family that is not read here.
    """
    known_to_hub = bool(revision) and HUB_ID.fullmatch(str(source)) and not Path(source).exists()
    folder = _fetch_configs(str(source), revision) if known_to_hub else find_ldm(source, revision)
    return None if folder is None else _size_in(folder)


def _size_in(folder: Path) -> int | None:
    denoiser = read_index(folder)[0].denoiser
    try:
        cells = read_json(folder / denoiser / "config.json", _MAX_CONFIG_BYTES)["sample_size"]
        halvings = len(read_json(folder / "vae" / "config.json", _MAX_CONFIG_BYTES)["block_out_channels"]) - 1
    except (DatasetError, KeyError, TypeError):
        return None
    return cells * 2**halvings if type(cells) is int and cells > 0 else None


def _fetch_configs(source: str, revision: str) -> Path | None:
    """The folder of the hub's cache that holds the model's index and the two files that tell its size."""
    from huggingface_hub import hf_hub_download

    try:
        folder = Path(hf_hub_download(source, INDEX, revision=revision)).parent
        for part in (read_index(folder)[0].denoiser, "vae"):
            hf_hub_download(source, f"{part}/config.json", revision=revision)
    except UserError:
        raise
    except Exception:  # the hub's client raises many types for one thing: it is not to be had
        return None
    return folder
