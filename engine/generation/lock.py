"""One owner at a time for a shard, a plan or a merge.

The kernel holds the lock (flock) and drops it when its process ends, however it ends: a dead owner blocks nobody, and a
process id that is used again cannot be taken for the old owner. The file's text only serves the messages.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
from contextlib import contextmanager
from pathlib import Path

from engine.errors import RunConflict

log = logging.getLogger(__name__)


class Busy(RunConflict):
    """Another live process owns what was asked for."""


@contextmanager
def lock(path: Path, what: str, wait: bool = False):
    """Own `path` exclusively inside the `with` block.

    Args:
        path: the lock's file; made here, removed at the end.
        what: what it stands for, in words, for messages.
        wait: wait for another owner to end, else raise.

    Raises:
        Busy: a live process (or another thread of this one) owns it.
    """
    handle = _acquire(path, what, wait)
    try:
        left_by = _read_owner(handle)
        if left_by:
            log.warning("%s: its owner (%s) ended without finishing; taken over.", what, left_by)
        _write_owner(handle)
        yield
    finally:
        path.unlink(missing_ok=True)  # before the release: who waits sees that the file is gone, and makes a new one
        os.close(handle)


def _acquire(path: Path, what: str, wait: bool) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _read_owner(handle)
            if not wait:
                os.close(handle)
                raise Busy(
                    f"{what} is in the hands of another live process ({owner or 'unknown'}; lock {path}). "
                    "Wait for it to end, or stop it, then give the same command again."
                ) from None
            log.info("%s: waiting for %s.", what, owner or "another process")
            fcntl.flock(handle, fcntl.LOCK_EX)
        if _is_still(path, handle):
            return handle
        os.close(handle)


def _is_still(path: Path, handle: int) -> bool:
    """Whether the open file is the one of that name: the owner before us removes it when it ends."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _read_owner(handle: int) -> str:
    text = os.pread(handle, 500, 0)
    try:
        owner = json.loads(text)
        return f"process {int(owner['pid'])} on {owner['host']}"
    except (ValueError, KeyError, TypeError):
        return "unknown" if text else ""


def _write_owner(handle: int) -> None:
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
