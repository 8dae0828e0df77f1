"""Folders on this machine for work that ends up elsewhere. Those of killed processes go when the next one starts."""

from __future__ import annotations

import atexit
import fcntl
import os
import secrets
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import ConfigError
from engine.generation.cleaning import to_the_end
from engine.generation.durable import remove_folder

_mine: dict[int, Path] = {}  # by process id: a forked child is another owner
_making = threading.Lock()


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new empty folder below TMPDIR, removed at the end of the block."""
    folder = process_folder() / secrets.token_hex(8)
    folder.mkdir()
    try:
        yield folder
    finally:
        to_the_end(lambda: remove_folder(folder))


def process_folder() -> Path:
    """This process's own folder; it is removed when the process ends.

    Raises:
        ConfigError: somebody else has taken the place.
    """
    with _making:
        if os.getpid() not in _mine:
            base = _base()
            _remove_dead(base)
            folder = _claim(base)
            _mine[os.getpid()] = folder
            atexit.register(_leave, os.getpid(), folder)
        return _mine[os.getpid()]


def _base() -> Path:
    base = Path(tempfile.gettempdir()) / f"diffusion-engine-{os.getuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    found = base.lstat()
    if found.st_uid != os.getuid() or base.is_symlink() or found.st_mode & 0o077:
        raise ConfigError(f"{base} is not a folder of this user alone. Remove it, or set TMPDIR to another place.")
    return base


def _claim(base: Path) -> Path:
    """A new folder with a lock beside it that the kernel drops when this process ends."""
    while True:
        folder = base / secrets.token_hex(8)
        handle = _locked(folder.with_suffix(".lock"))
        if handle is not None:  # kept open to the end of the process
            folder.mkdir()
            return folder


def _remove_dead(base: Path) -> None:
    for path in base.glob("*.lock"):
        handle = _locked(path)
        if handle is not None:
            remove_folder(path.with_suffix(""))
            path.unlink(missing_ok=True)
            os.close(handle)


def _locked(path: Path) -> int | None:
    """The open lock file; None where another process has it or has just removed it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.stat(path), os.fstat(handle)):
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(handle)
    return None


def _leave(pid: int, folder: Path) -> None:
    if os.getpid() == pid:
        remove_folder(folder)
        folder.with_suffix(".lock").unlink(missing_ok=True)
