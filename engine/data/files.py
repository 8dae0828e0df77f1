"""Files of a dataset folder: names that stay inside it, hashes, and writing that is never half done."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from pathlib import Path

_WINDOWS_DRIVE = re.compile(r"^[A-Za-z]:")
_MAX_NAME = 1024


def name_problem(name: object) -> str | None:
    """Why `name` cannot be a file name relative to a dataset's images/, or None. Touches no file."""
    if not isinstance(name, str) or not name:
        return f"file_name {name!r} is not a name"
    if len(name) > _MAX_NAME:
        return f"file_name is {len(name)} characters long, at most {_MAX_NAME} are allowed"
    shown = f"file_name {name!r}"
    if any(ord(c) < 32 or ord(c) == 127 for c in name):
        return f"{shown} holds a NUL or another control character"
    if any(0xD800 <= ord(c) <= 0xDFFF for c in name):
        return f"{shown} is not valid text"
    if "\\" in name:
        return f"{shown} holds a backslash; folders are separated by '/'"
    if name.startswith("/") or _WINDOWS_DRIVE.match(name):
        return f"{shown} is absolute; names are relative to images/"
    parts = name.split("/")
    if ".." in parts:
        return f"{shown} leaves the dataset folder"
    if "" in parts or "." in parts:
        return f"{shown} has an empty or '.' part"
    return None


class Containment:
    """Answers whether a path below `root` stays there when links are followed. Opens nothing.

    One stat per file: the real path of each parent folder is kept.
    """

    def __init__(self, root: Path):
        self.root = os.path.realpath(root)
        self._parents: dict[str, str] = {}

    def problem(self, path: Path) -> str | None:
        """Why `path` is no readable file below the root, or None."""
        parent, name = os.path.split(path)
        if parent not in self._parents:
            self._parents[parent] = os.path.realpath(parent)
        real = os.path.join(self._parents[parent], name)
        try:
            if stat.S_ISLNK(os.lstat(real).st_mode):
                real = os.path.realpath(real)
            if os.path.commonpath([real, self.root]) != self.root:
                return f"the file is a link that leaves {self.root}"
            if not stat.S_ISREG(os.lstat(real).st_mode):
                return "it is not a plain file"
        except FileNotFoundError:
            return "there is no such file"
        except (OSError, ValueError) as error:
            return f"the file cannot be reached ({error})"
        return None


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`: after a crash there is the old file or the new one, on the disk, never a part."""
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def link_or_copy(source: Path, target: Path) -> None:
    """Have the file `source` at `target` too, as one file on the disk where it can be; what is there already stays."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        return
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(source, target)
