"""One MongoDB server of our own for FiftyOne, shared by every command that runs at the same time.

FiftyOne's embedded server loses when several processes start together, so we start mongod ourselves, with its files
below `DE_HOME` (default ~/.diffusion-engine). Each user holds a shared lock on a file; the last one out stops the
server. The kernel drops the lock of a killed process, so nothing is left to clean up by hand.
A user's own MongoDB is taken from FIFTYONE_DATABASE_URI, and nothing is started then.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import RunFailed
from tasks.home import exclusive_lock, home_folder
from tasks.mongod import START_SECONDS, cure, running_port, server_answers, server_uri, start_server, stop_server


@contextmanager
def database() -> Iterator[str]:
    """The URI of a MongoDB server that answers, for as long as the context lasts.

    Raises:
        RunFailed: the user's server does not answer, or ours is missing or does not start; says what to do.
    """
    own = os.environ.get("FIFTYONE_DATABASE_URI")
    if own:
        if not server_answers(own, seconds=5.0):
            raise RunFailed(
                "The MongoDB server of FIFTYONE_DATABASE_URI does not answer. "
                "Start it, mend the address, or unset the variable to use the server that comes with this project."
            )
        yield own
        return
    folder = home_folder() / "mongo"
    owner, lease = os.getpid(), _join(folder)
    try:
        yield server_uri(running_port(folder))
    finally:
        if os.getpid() == owner:  # a fork of this process shares the lease, and must not give it back
            _leave(folder, lease)


def own_server_uri() -> str | None:
    """URI of our server if it runs now; None when it does not. Asks the system, not the server."""
    port = running_port(home_folder() / "mongo")
    return None if port is None else server_uri(port)


def stop_unused() -> None:
    """Stop our server if it runs and nobody uses it: its last user was killed."""
    folder = home_folder() / "mongo"
    if running_port(folder) is not None:
        _leave(folder, os.open(folder / "users.lock", os.O_RDWR | os.O_CREAT, 0o600))


def _join(folder: Path) -> int:
    """Become a user of the server, starting it if need be. Returns the descriptor that holds the shared lock."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    with exclusive_lock(folder / "start.lock"):
        lease = os.open(folder / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lease, fcntl.LOCK_SH)
            port = running_port(folder)
            if port is None:
                start_server(folder)
            elif not server_answers(server_uri(port), START_SECONDS):
                raise RunFailed(
                    f"The MongoDB server of {folder} runs on port {port} but does not answer. {cure(folder)}"
                )
        except BaseException:
            os.close(lease)
            raise
    return lease


def _leave(folder: Path, lease: int) -> None:
    """Give the lease back; the last user stops the server."""
    try:
        with exclusive_lock(folder / "start.lock"):
            try:
                fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return  # somebody else still uses it
            stop_server(folder)
    finally:
        os.close(lease)
