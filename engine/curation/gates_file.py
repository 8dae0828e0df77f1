"""gates.json, beside annotations.json: what the gates found, image by image and in total.

    {"annotations": "<sha256 of annotations.json>", "settings": {review}, "features": null or the model's identity,
     "encoder": null or the image-text encoder's,
     "batch": {"outcome": "pass", "figures": {...}, "note": "..."}, "counts": {"verdicts": {...}, "fail": {...}, ...},
     "images": [{"id": 1, "verdict": "pass", "accepted": true, "reasons": [], "borderline": [], "scores": {...},
                 "note": ""}, ...]}

decisions.json says what training may use; this file says why the gates think so. The counts stand in manifest.json
too, as `gates`, for whoever reads only that.
"""

from __future__ import annotations

import json
from pathlib import Path

from engine.config import as_dict
from engine.curation.decisions import annotations_digest
from engine.curation.verdicts import BORDERLINE, FAIL, PASS, REJECTING, TAGS, Batch, Judgement, Verdict
from engine.data.bounded_json import read_json
from engine.data.coco_checks import is_number
from engine.data.dataset import Dataset
from engine.data.files import write_atomically
from engine.errors import DatasetError
from engine.sections import ReviewSettings

FILE = "gates.json"
_MANIFEST = "manifest.json"
_DIGITS = 6  # of scores: the last digits of features depend on the machine
_CURE = "Review the folder again, or delete {file}."


def write_gates(
    folder: Path,
    judgement: Judgement,
    settings: ReviewSettings,
    features: dict | None = None,
    encoder: dict | None = None,
) -> Path:
    """Write gates.json in one step, then its counts into the folder's manifest.json, if it has one. The same judgement
    gives the same bytes.

    Args:
        features: what gave the features, in json-ready values; None where hashes alone decided.
        encoder: likewise of the image-text encoder.

    Raises:
        DatasetError: the folder has no annotations.json.
    """
    batch = judgement.batch
    head = {
        "annotations": annotations_digest(folder),
        "settings": as_dict(settings),
        "features": features,
        "encoder": encoder,
        "batch": {
            "outcome": batch.outcome,
            "figures": {name: _rounded(figures) for name, figures in batch.figures.items()},
            "note": batch.note,
        },
        "counts": judgement.counts(),
    }
    text = json.dumps(head, indent=1, ensure_ascii=True, allow_nan=False)
    lines = ",\n".join(json.dumps(_entry(v), ensure_ascii=True, allow_nan=False) for v in judgement.verdicts)
    path = Path(folder) / FILE
    write_atomically(path, f'{text[:-2]},\n "images": [\n{lines}\n ]\n}}\n'.encode())
    _note_in_manifest(Path(folder))
    return path


def gates_summary(folder: Path, annotations_sha256: str) -> dict | None:
    """What manifest.json tells of the gates: the batch's outcome and the counts. None where no gates.json of these
    labels is there."""
    try:
        content = read_json(folder / FILE)
        return (
            {"batch": content["batch"]["outcome"], **content["counts"]}
            if content["annotations"] == annotations_sha256
            else None
        )
    except (OSError, DatasetError, KeyError, TypeError):
        return None


def _note_in_manifest(folder: Path) -> None:
    """A manifest that cannot be read is left for its readers to complain about."""
    path = folder / _MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        manifest["gates"] = gates_summary(folder, annotations_digest(folder))
    except (OSError, ValueError, TypeError, RecursionError):
        return
    text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False)
    write_atomically(path, text.encode("ascii") + b"\n")


def load_gates(folder: Path, dataset: Dataset) -> Judgement | None:
    """What the gates found in a folder, checked against its dataset; None when no gates.json is there.

    Raises:
        DatasetError: the file is broken, or belongs to another annotations.json.
    """
    path = Path(folder) / FILE
    if not path.exists():
        return None
    cure = _CURE.format(file=path)
    try:
        content = read_json(path)
    except DatasetError as error:
        raise DatasetError(f"{error} {cure}") from None
    fault = _fault(content, [image.id for image in dataset.images])
    if fault:
        raise DatasetError(f"{path}: {fault}. {cure}")
    if content["annotations"] != annotations_digest(Path(folder)):
        raise DatasetError(f"{path}: it is about another annotations.json. {cure}")
    batch = content["batch"]
    return Judgement(
        tuple(_verdict(entry) for entry in content["images"]),
        Batch(batch["outcome"], batch["figures"], batch["note"]),
    )


def _entry(verdict: Verdict) -> dict:
    return {
        "id": verdict.image_id,
        "verdict": verdict.outcome,
        "accepted": verdict.accepted,
        "reasons": list(verdict.reasons),
        "borderline": list(verdict.doubts),
        "scores": _rounded(verdict.scores),
        "note": verdict.note,
    }


def _verdict(entry: dict) -> Verdict:
    names = (entry["id"], entry["accepted"], tuple(entry["reasons"]), entry["scores"], entry["note"])
    return Verdict(*names, doubts=tuple(entry["borderline"]))


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(value, _DIGITS) for name, value in sorted(figures.items())}


def _fault(content, image_ids: list[int]) -> str | None:
    """What is wrong with the shape of the file's content; None when nothing is."""
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), str):
        return "'annotations' must be the sha256 of annotations.json"
    batch = content.get("batch")
    if (
        not isinstance(batch, dict)
        or batch.get("outcome") not in (PASS, BORDERLINE, FAIL, None)
        or not isinstance(batch.get("figures"), dict)
        or not isinstance(batch.get("note"), str)
    ):
        return "'batch' must hold outcome, figures and note"
    entries = content.get("images")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return "'images' must be a list of objects"
    if [entry.get("id") for entry in entries] != image_ids:
        return "'images' are not those of annotations.json"
    odd = next((entry["id"] for entry in entries if not _sound(entry)), None)
    return None if odd is None else f"the entry of image {odd} is not as the gates write it"


def _sound(entry: dict) -> bool:
    scores = entry.get("scores")
    return (
        type(entry.get("accepted")) is bool
        and isinstance(entry.get("note"), str)
        and isinstance(scores, dict)
        and all(is_number(value) for value in scores.values())
        and all(
            isinstance(entry.get(key), list) and all(name in known for name in entry[key])
            for key, known in (("reasons", TAGS), ("borderline", REJECTING))
        )
    )
