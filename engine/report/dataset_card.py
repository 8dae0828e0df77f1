"""CARD.md of a generated dataset: what it is, where it comes from, how good its labels are, and what is wrong with it.

Pure text from the dataset's own files: the same folder and parents give the same bytes. It holds no clock and no path
of this machine, since it travels with the dataset.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from engine.curation import decisions
from engine.data.files import write_atomically
from engine.data.licence import stated_licence
from engine.errors import ModelError
from engine.generation.card_mark import CARD, is_foreign, mark_line
from engine.generation.contents import read_manifest
from engine.report.card_figures import counted, faults_of, quality_of, reviewed
from engine.report.templates import open_templates

log = logging.getLogger(__name__)
# What would be read as markdown or html; pipes end cells.
_ESCAPED = str.maketrans({c: "\\" + c for c in "\\`*_[]<>|#"})


def write_card(folder: Path, name: str, data: Path | None, ldm: Path | None, adapter: Path | None) -> Path | None:
    """Write `folder`/CARD.md, whole or not at all. A CARD.md that somebody wrote by hand stays, and None is returned.

    Args:
        folder: a generated dataset.
        name: what the card calls it, such as coco-de-v3.
        data, ldm, adapter: folders that it was generated with, for their licences and for the adapter's thresholds;
            None where there is no such folder here.

    Raises:
        DatasetError: the folder holds no readable manifest.
    """
    text = card_text(folder, name, data, ldm, adapter)
    if is_foreign(folder):
        log.warning("%s was not written by this engine and is left as it is.", folder / CARD)
        return None
    path = folder / CARD
    content = text.encode("utf-8", errors="replace")
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)
    return path


def card_text(folder: Path, name: str, data: Path | None, ldm: Path | None, adapter: Path | None) -> str:
    """The text that `write_card` writes.

    Raises:
        DatasetError: the folder holds no readable manifest.
    """
    manifest, card = read_manifest(folder), _card_of(adapter)
    identity, settings = manifest["identity"], manifest["settings"]
    own = identity.get("adapter") or {}
    if card.get("weights_sha256") != own.get("weights_sha256"):
        card = {}  # the adapter in that folder is another one by now
    review = reviewed(folder / decisions.FILE)
    quality = quality_of(manifest, card)
    environment = open_templates(autoescape=False)  # it is markdown: see _plain
    environment.filters |= {"plain": _plain, "cell": _plain}
    return environment.get_template("dataset_card.md.j2").render(
        name=name,
        mark=mark_line(manifest["annotations_sha256"]),
        size_words=f"{settings.get('ldm', {}).get('resolution', 'unknown')} px on the short edge",
        identity=_identity(name, manifest),
        parents=_parents(manifest, card, data, ldm),
        settings=[(f"{part}.{key}", _word(value)) for part in settings for key, value in settings[part].items()],
        review=review,
        faults=faults_of(manifest, review, quality),
        **counted(manifest),
        **quality,
    )


def _identity(name: str, manifest: Mapping) -> list[tuple[str, str]]:
    return [
        ("version", name),
        ("plan", str(manifest["plan"])),
        ("seed", str(manifest["seed"])),
        ("annotations.json, sha256", manifest["annotations_sha256"]),
        ("images, sha256", manifest["images_sha256"]),
    ]


def _parents(manifest: Mapping, card: Mapping, data: Path | None, ldm: Path | None) -> list[tuple[str, str, str]]:
    model, own = manifest["identity"].get("ldm") or {}, manifest["identity"].get("adapter") or {}
    base, training = model.get("adapted_from") or {}, card.get("training") or {}
    named = "" if data is None else f"{data.absolute().name}, "
    rows = [("real data", f"{named}digest {manifest['data']}", stated_licence(data))]
    revision = f" at {model['revision']}" if model.get("revision") else ""
    rows.append(("diffusion model", f"{model.get('id')}{revision}, {_digest(model)}", stated_licence(ldm)))
    if base:
        rows.append(("which was fitted from", f"{base.get('id')}, {_digest(base)}", "see that model"))
    of = f", trained on {training['images']} images with {training['boxes']} boxes" if "boxes" in training else ""
    return [*rows, ("adapter", f"{_digest(own)}{of}", "follows from the data and the model that it was trained on")]


def _digest(identity: Mapping) -> str:
    sha256 = identity.get("weights_sha256") or identity.get("sha256")
    return f"weights {sha256}" if sha256 else "weights not recorded"


def _card_of(adapter: Path | None) -> dict:
    from engine.adapter.adapter import read_card

    try:
        return {} if adapter is None else read_card(adapter)
    except ModelError:  # it was there when the dataset was drawn; the card then says less
        return {}


def _word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _plain(text: object) -> str:
    """Words of others on one line, without a meaning in markdown or html."""
    return "".join(c for c in " ".join(str(text).split()) if c.isprintable()).translate(_ESCAPED)
