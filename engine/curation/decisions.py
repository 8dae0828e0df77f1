"""decisions.json: which images of a generated dataset training may use, and why the others may not.

    {"accepted": [1, 2], "rejected": {"3": "duplicate: repeats generated image 1"},
     "reviewer": {"3": "rejected"}, "decided_by": {"3": "anna"}, "digest": "<sha256 of annotations.json>"}

`reviewer` holds what a person decided against or beside the gates; a later run of the gates keeps it. `decided_by` says
who that was, where it is known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

from engine.data.bounded_json import read_json
from engine.data.dataset import Dataset
from engine.data.files import file_sha256, write_atomically
from engine.errors import DatasetError

FILE = "decisions.json"
_CURE = "Review the folder again, or delete {file} to use every image."


@dataclass(frozen=True)
class Decisions:
    """accepted: image ids; rejected: image id -> reason; reviewer: image id -> whether the person accepted it;
    decided_by: image id -> that person's name, where it is known."""

    accepted: frozenset[int]
    rejected: Mapping[int, str]
    reviewer: Mapping[int, bool] = field(default_factory=dict)
    decided_by: Mapping[int, str] = field(default_factory=dict)


def annotations_digest(folder: Path) -> str:
    """sha256 of the bytes of annotations.json.

    Raises:
        DatasetError: no such file.
    """
    path = Path(folder) / "annotations.json"
    try:
        return file_sha256(path)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}). Is this a generated dataset folder?") from None


def read_decisions(folder: Path, dataset: Dataset) -> set[int]:
    """Ids of the images that training may use: all of the dataset's when the folder holds no decisions.

    An image that is neither accepted nor rejected is not used.

    Raises:
        DatasetError: the file is broken, belongs to another annotations.json, or names unknown images.
    """
    decisions = load_decisions(folder, dataset)
    return {image.id for image in dataset.images} if decisions is None else set(decisions.accepted)


def load_decisions(folder: Path, dataset: Dataset) -> Decisions | None:
    """The decisions of a folder, checked against its dataset; None when there are none.

    Raises:
        DatasetError: as read_decisions.
    """
    return decisions_about(folder, {image.id for image in dataset.images})


def decisions_about(folder: Path, image_ids: Set[int]) -> Decisions | None:
    """`load_decisions` for whoever has not read the dataset whole: `image_ids` are all that annotations.json holds.

    Raises:
        DatasetError: as read_decisions.
    """
    path = Path(folder) / FILE
    if not path.exists():
        return None
    content = _read(path)
    cure = _CURE.format(file=path)
    digest = annotations_digest(Path(folder))
    if content["digest"] != digest:
        raise DatasetError(
            f"{path}: these decisions were made for another annotations.json (theirs {content['digest'][:12]}, "
            f"here {digest[:12]}); the image ids no longer mean the same images. {cure}"
        )
    decisions = Decisions(
        frozenset(content["accepted"]),
        {int(key): reason for key, reason in content["rejected"].items()},
        {int(key): word == "accepted" for key, word in content["reviewer"].items()},
        {int(key): name for key, name in content["decided_by"].items()},
    )
    _check(decisions, image_ids, path, cure)
    return decisions


def write_decisions(folder: Path, dataset: Dataset, decisions: Decisions) -> Path:
    """Write decisions.json in one step: readers see the old file or the new one, never half of one.

    The same decisions give the same bytes.

    Raises:
        DatasetError: unknown image ids, or an image both accepted and rejected.
    """
    path = Path(folder) / FILE
    _check(decisions, {image.id for image in dataset.images}, path, "")
    content = {
        "accepted": sorted(decisions.accepted),
        "rejected": {str(key): decisions.rejected[key] for key in sorted(decisions.rejected)},
        "reviewer": {
            str(key): "accepted" if decisions.reviewer[key] else "rejected" for key in sorted(decisions.reviewer)
        },
        "digest": annotations_digest(Path(folder)),
    }
    if decisions.decided_by:
        content["decided_by"] = {str(key): decisions.decided_by[key] for key in sorted(decisions.decided_by)}
    write_atomically(path, (json.dumps(content, indent=1, ensure_ascii=True) + "\n").encode())
    return path


def _read(path: Path) -> dict:
    """The file's content in the right types, or a DatasetError."""
    try:
        content = read_json(path)
    except DatasetError as error:
        raise DatasetError(f"{error} {_CURE.format(file=path)}") from None
    fault = _fault(content)
    if fault:
        raise DatasetError(f"{path}: {fault}. {_CURE.format(file=path)}")
    content.setdefault("reviewer", {})
    content.setdefault("decided_by", {})
    return content


def _fault(content) -> str | None:
    """What is wrong with the shape of the file's content; None when nothing is."""
    if not isinstance(content, dict):
        return "must hold an object"
    if not isinstance(content.get("digest"), str):
        return "'digest' must be the sha256 of annotations.json"
    accepted = content.get("accepted")
    if not isinstance(accepted, list) or not all(type(i) is int for i in accepted):
        return "'accepted' must be a list of image ids"
    for key in ("rejected", "reviewer", "decided_by"):
        entries = content.get(key, None if key == "rejected" else {})
        if not isinstance(entries, dict) or not all(isinstance(v, str) for v in entries.values()):
            return f"'{key}' must map image ids to words"
        odd = next((i for i in entries if not (i.isascii() and i.isdigit())), None)
        if odd is not None:
            return f"'{key}' holds {odd!r}, which is not an image id"
    odd = next((word for word in content.get("reviewer", {}).values() if word not in ("accepted", "rejected")), None)
    return None if odd is None else f"'reviewer' holds {odd!r}; write accepted or rejected"


def _check(decisions: Decisions, known: Set[int], path: Path, cure: str) -> None:
    for what, ids in (
        ("accepted", decisions.accepted),
        ("rejected", set(decisions.rejected)),
        ("decided by the reviewer", {*decisions.reviewer, *decisions.decided_by}),
    ):
        unknown = sorted(set(ids) - known)
        if unknown:
            raise DatasetError(
                f"{path}: {len(unknown)} images are {what} that annotations.json does not hold, "
                f"the first: {', '.join(map(str, unknown[:10]))}. {cure}".rstrip()
            )
    both = sorted(decisions.accepted & set(decisions.rejected))
    if both:
        raise DatasetError(f"{path}: image {both[0]} is both accepted and rejected. {cure}".rstrip())
