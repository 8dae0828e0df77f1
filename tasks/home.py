"""The user's folder of this project, and locks between commands that run at the same time."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import RunFailed

_LOCK_SECONDS = 300.0


def home_folder() -> Path:
    """Where the project keeps what belongs to the user and to no dataset: DE_HOME, else ~/.diffusion-engine."""
    return Path(os.environ.get("DE_HOME") or Path.home() / ".diffusion-engine").absolute()


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold a file's lock; a dead holder's lock is free.

    Raises:
        RunFailed: another live process has held it for five minutes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RunFailed(
                        f"Another process has held {path} for {_LOCK_SECONDS:.0f} s. Wait for it, or end it."
                    ) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)
