"""What pins the content of a dataset or model folder: digests, equal wherever the folder lies."""

from __future__ import annotations

import json
from pathlib import Path

from engine.curation import decisions, edits
from engine.data.dataset import SPLITS, read_dataset
from engine.data.files import file_sha256
from engine.errors import DatasetError

GENERATED, DATASET, ADAPTER, LDM, OTHER = "generated dataset", "dataset", "adapter", "diffusion model", "other"
BASELINE = "dataset of a baseline"
MANIFEST = "manifest.json"
_WRITTEN = ("annotations_sha256", "images_sha256")
_PINNED = ("plan", *_WRITTEN)


def kind_of(folder: Path) -> str:
    """Which of our folders it is, by the file that each of them has."""
    if _is_baseline(folder / MANIFEST):
        return BASELINE
    marks = {GENERATED: (MANIFEST,), ADAPTER: ("adapter.json",), LDM: ("model_index.json",)}
    marks[DATASET] = tuple(f"{split}.json" for split in SPLITS)
    return next((kind for kind, names in marks.items() if any((folder / name).is_file() for name in names)), OTHER)


def content_of(folder: Path) -> dict[str, str | None]:
    """Digests by name; none for a folder that is neither dataset nor model. Of real data every picture is read, of a
    model every weight; of a generated dataset the manifest is believed: `check_unchanged` compares it with the bytes.

    Raises:
        DatasetError, ModelError: a file that the digests are read from is broken.
    """
    kind = kind_of(folder)
    if kind in (GENERATED, BASELINE):
        return generated_content(folder)
    if kind == DATASET:
        return {split: read_dataset(folder, split).digest() for split in SPLITS if (folder / f"{split}.json").is_file()}
    if kind == ADAPTER:
        from engine.adapter.adapter import read_card

        return {"weights_sha256": read_card(folder)["weights_sha256"]}
    if kind == LDM:
        from engine.ldm.folder import hash_weights

        return {"weights_sha256": hash_weights(folder)}
    return {}


def generated_content(folder: Path) -> dict[str, str | None]:
    """Digests of plan (a baseline has none), labels and pictures, and of the decisions of review and of edited boxes:
    all that decides what is trained on.

    Raises:
        DatasetError: manifest.json cannot be read.
    """
    baseline = kind_of(folder) == BASELINE
    manifest = _read(folder, _WRITTEN) if baseline else read_manifest(folder)
    chosen, edited = folder / decisions.FILE, folder / edits.FILE
    content = {name: manifest[name] for name in (_WRITTEN if baseline else _PINNED)}
    content["decisions_sha256"] = file_sha256(chosen) if chosen.is_file() else None
    # Without edits there is no such key, so that comparisons of earlier days still name the same content.
    return content | ({"edits_sha256": file_sha256(edited)} if edited.is_file() else {})


def read_manifest(folder: Path) -> dict:
    """The manifest of a generated dataset.

    Raises:
        DatasetError: missing, broken, or without the parts that every manifest has.
    """
    return _read(folder, (*_PINNED, "counts", "classes", "settings", "identity", "data", "seed"))


def _is_baseline(path: Path) -> bool:
    """Whether it is the manifest of a baseline; one that cannot be read is for its reader to complain about."""
    try:
        return "baseline" in json.loads(path.read_bytes())
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _read(folder: Path, needed: tuple[str, ...]) -> dict:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        for name in needed:
            manifest[name]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DatasetError(
            f"{path} is not readable ({type(error).__name__}: {error}). `de resume {folder} --verify` writes it anew."
        ) from None
    return manifest
