"""CARD.md in a generated dataset's folder: which state of the dataset it tells of. Its text is `engine.report`'s."""

from __future__ import annotations

import re
from pathlib import Path

CARD = "CARD.md"
_MARK = re.compile(r"^<!-- annotations_sha256: ([0-9a-f]{64}) -->$", re.MULTILINE)
_HEAD = 4096  # the mark stands in the first lines


def mark_line(annotations_sha256: str) -> str:
    """The line of a card that names the labels it tells of."""
    return f"<!-- annotations_sha256: {annotations_sha256} -->"


def is_foreign(folder: Path) -> bool:
    """Whether there is a CARD.md without the mark: somebody wrote it by hand, and it is left alone."""
    return (folder / CARD).exists() and _marked(folder) is None


def card_problem(folder: Path, annotations_sha256: str) -> str | None:
    """Why the folder's card is not of these labels, or None. A dataset without a card of ours lacks nothing."""
    told = _marked(folder)
    return None if told in (None, annotations_sha256) else f"{CARD} tells of another annotations.json"


def remove_outdated_card(folder: Path, annotations_sha256: str) -> None:
    """Take a card away that tells of other labels: the next version gets its own."""
    if card_problem(folder, annotations_sha256):
        (folder / CARD).unlink()


def _marked(folder: Path) -> str | None:
    try:
        with open(folder / CARD, "rb") as file:
            found = _MARK.search(file.read(_HEAD).decode("utf-8", errors="replace"))
    except OSError:  # none, or one that nobody can read
        return None
    return found[1] if found else None
