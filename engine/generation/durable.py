"""Writes that survive a kill or a power cut: content first, then the name."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

_TO_JSON = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode


def write_durably(path: Path, content: bytes) -> None:
    """Write a new file and force it to the disk. Its folder is not forced: see `sync_folder`."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, chunks: Iterable[bytes]) -> str:
    """Put a whole file in the place of an old one, or leave the old one untouched; returns the content's sha256."""
    part = path.with_name(f".{path.name}.part")
    sha256 = hashlib.sha256()
    try:
        with open(part, "wb") as file:
            for chunk in chunks:
                sha256.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return sha256.hexdigest()


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_folder(folder: Path) -> None:
    """Remove a folder and all below it; nothing happens where there is none. Of a link or a file in its place only the
    name goes.
    """
    try:
        os.unlink(folder)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """sha256 of a file, read in pieces.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_json(value) -> bytes:
    """One line of json: the same value gives the same bytes, on every machine. Any text is kept, in ASCII."""
    return _TO_JSON(value).encode("ascii")
