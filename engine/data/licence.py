"""The licence that a folder of data or of a model states, in its own words."""

from __future__ import annotations

import re
from pathlib import Path

NOT_STATED = "not stated"
_FILES = re.compile(r"(licen[cs]e|copying|unlicense)([.-].*)?", re.IGNORECASE)
_READMES = re.compile(r"readme(\..*)?", re.IGNORECASE)
_LINE = re.compile(r"licen[cs]e", re.IGNORECASE)
_READ, _SHOWN = 20_000, 200  # bytes that are looked at, characters that are quoted


def stated_licence(folder: Path | None) -> str:
    """The first lines of the folder's licence file; else the line of its readme that names a licence; else "not
    stated". Which file said so is named. Nothing is concluded from what is found: it is quoted.
    """
    if folder is None or not folder.is_dir():
        return NOT_STATED
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    for name in filter(_FILES.fullmatch, names):
        lines = [line for line in _lines(folder / name) if re.search(r"\w", line)]
        if lines:
            return _quoted(", ".join(lines[:2]), name)
    for name in filter(_READMES.fullmatch, names):
        said = _line_of(_lines(folder / name))
        if said:
            return _quoted(said, name)
    return NOT_STATED


def _line_of(lines: list[str]) -> str | None:
    """The line that names a licence; of one that is only a heading, the next line with words."""
    for place, line in enumerate(lines):
        if _LINE.search(line):
            heading = line.startswith("#") or line.rstrip(":*_ ").lower() in ("license", "licence")
            after = next((later for later in lines[place + 1 :] if re.search(r"\w", later)), None)
            return after if heading and after else line
    return None


def _lines(path: Path) -> list[str]:
    try:
        with open(path, "rb") as file:
            return [line.strip() for line in file.read(_READ).decode("utf-8", errors="replace").splitlines()]
    except OSError:  # what cannot be read states nothing
        return []


def _quoted(text: str, name: str) -> str:
    text = " ".join(text.split())
    text = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    return f"{text} ({name})"
