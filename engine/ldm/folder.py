"""A diffusion model's folder: where it lies, which family it is of, what pins it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from engine.data.bounded_json import read_json
from engine.errors import DatasetError, ModelError
from engine.ldm.families import FAMILIES, Entry

INDEX, ADAPTATION = "model_index.json", "adaptation.json"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")  # owner/name
_MAX_INDEX_BYTES = 2**20
_MAX_ADAPTATION_BYTES = 2**24  # it also holds the training curve


@dataclass(frozen=True)
class LdmIdentity:
    """What pins a diffusion model: its id, revision, and the sha256 over its weight files; and for one that was fitted
    to a user's images, the identity of the model it came from and how."""

    id: str
    revision: str | None
    weights_sha256: str
    adapted_from: dict | None = None
    method: str | None = None

    def as_dict(self) -> dict:
        return {
            "id": self.id,
            "revision": self.revision,
            "weights_sha256": self.weights_sha256,
            "adapted_from": self.adapted_from,
            "method": self.method,
        }


def identify(source: str | Path, revision: str | None, folder: Path) -> LdmIdentity:
    """The identity of the model in `folder`, which `source` at `revision` led to.

    Raises:
        ModelError: an index or an adaptation.json that cannot be read.
    """
    base, method = read_adaptation(folder)
    return LdmIdentity(str(source) if revision else folder.name, revision, hash_weights(folder), base, method)


def find_ldm(source: str | Path, revision: str | None = None) -> Path:
    """The local folder of a diffusion model: `source` itself, "world" for the embedded one, or a hub snapshot.

    Raises:
        ModelError: no such folder, a hub id without a pinned revision, or one that cannot be fetched.
    """
    from engine.ldm import embedded_folder

    if str(source) == "world":
        return embedded_folder()
    path = Path(source)
    if (path / INDEX).is_file():
        return path
    if path.exists() or not HUB_ID.fullmatch(str(source)):
        raise ModelError(
            f"No diffusion model in {source}: there is no {INDEX}. Give a folder saved by diffusers, "
            "a hub id (owner/name), or 'world' for the embedded model."
        )
    if not revision:
        raise ModelError(
            f"The hub id {source} has no pinned revision, so a later change on the hub would change your data. "
            "Set ldm.revision to a commit hash of that repository."
        )
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(str(source), revision=revision, use_safetensors=True))
    except Exception as error:  # the hub's client raises many types for one thing: it is not to be had
        raise ModelError(f"Could not fetch {source} at {revision}: {str(error).splitlines()[0]}") from error


def read_index(folder: Path) -> tuple[Entry, dict]:
    """The family of a model folder and its index, which names only classes that the family allows.

    Raises:
        ModelError: unreadable, of an unknown family, or it names another class.
    """
    try:
        index = read_json(folder / INDEX, _MAX_INDEX_BYTES)
    except DatasetError as error:
        raise ModelError(f"{folder / INDEX} cannot be read: {error}") from None
    name = index.get("_class_name") if isinstance(index, dict) else None
    entry = FAMILIES.get(name) if isinstance(name, str) else None
    if entry is None:
        raise ModelError(
            f"{folder / INDEX} names {name!r} as its pipeline; this engine reads {', '.join(sorted(FAMILIES))}."
        )
    for part, allowed in entry.parts.items():
        named = index.get(part)
        library = "diffusers" if part in (entry.denoiser, "vae", "scheduler") else "transformers"
        if named not in [[library, name] for name in allowed]:
            raise ModelError(
                f"{folder / INDEX} names {named!r} as its {part}; "
                f"this engine reads {' or '.join(allowed)} of {library}."
            )
    return entry, index


def hash_weights(folder: Path) -> str:
    """sha256 over the safetensors and config files of the model's parts, in a fixed order.

    Raises:
        ModelError: the folder's index cannot be read.
    """
    total = hashlib.sha256()
    for part in read_index(folder)[0].weights:
        config = folder / part / "config.json"
        if not config.is_file():
            raise ModelError(f"The model in {folder} lacks {config.relative_to(folder)}. Fetch or save it again.")
        for path in sorted([*(folder / part).glob("*.safetensors"), config]):
            total.update(f"{part}/{path.name}".encode())
            with path.open("rb") as handle:
                total.update(hashlib.file_digest(handle, "sha256").digest())
    return total.hexdigest()


def read_adaptation(folder: Path) -> tuple[dict | None, str | None]:
    """From adaptation.json: identity of the base model, and "full" or "lora"; both None for a model without one.

    Raises:
        ModelError: a file that is not what `adapt_ldm` writes.
    """
    path = folder / ADAPTATION
    if not path.is_file():
        return None, None
    try:
        record = read_json(path, _MAX_ADAPTATION_BYTES)
    except DatasetError as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    base, method = (record.get("base"), record.get("method")) if isinstance(record, dict) else (None, None)
    words = [base.get("id"), base.get("weights_sha256"), method] if isinstance(base, dict) else [None]
    if not all(isinstance(word, str) for word in words):
        raise ModelError(f"{path} does not say which model was adapted and how. Adapt the model again, or remove it.")
    return {"id": base["id"], "revision": base.get("revision"), "weights_sha256": base["weights_sha256"]}, method
