"""FiftyOne, connected to our MongoDB: the one door through which this project uses it.

FiftyOne reads its settings from the environment when it is imported, connects at once, and at exit waits half a minute
for a server that has gone. So it is imported here, with the environment set for the import alone, and disconnected
before its server stops.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import ModuleType

from engine.errors import RunFailed
from tasks.mongod import database

_lock = threading.RLock()
_users = 0
_open = ExitStack()


def fiftyone_environment(uri: str) -> Mapping[str, str]:
    """Environment variables of every process that runs FiftyOne for us: quiet, offline, on this database."""
    return {
        "FIFTYONE_DATABASE_URI": uri,
        "FIFTYONE_DATABASE_VALIDATION": "false",
        "FIFTYONE_DO_NOT_TRACK": "true",
        "FIFTYONE_SHOW_PROGRESS_BARS": "false",
        "FIFTYONE_REQUIREMENT_ERROR_LEVEL": "2",
    }


@contextmanager
def connected_fiftyone() -> Iterator[ModuleType]:
    """The fiftyone module, connected for as long as the context lasts. Contexts may nest and run in threads.

    Raises:
        RunFailed: FiftyOne is not installed, does not import, or its database does not start; says what to do.
    """
    global _users, _open
    with _lock:
        if _users == 0:
            with ExitStack() as starting:
                fiftyone = _connect(starting.enter_context(database()))
                starting.callback(_disconnect)
                _open = starting.pop_all()
        else:
            fiftyone = sys.modules["fiftyone"]
        _users += 1
    try:
        yield fiftyone
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _open.close()


def _connect(uri: str) -> ModuleType:
    known = "fiftyone" in sys.modules
    wanted = fiftyone_environment(uri)
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        import fiftyone
        import fiftyone.core.odm.database as link

        if known:  # the import connected to another server, or to this one before it was stopped
            fiftyone.config.database_uri = uri
            link._disconnect()
            link._connect()
    except Exception as error:
        raise RunFailed(
            f"FiftyOne cannot be used: {type(error).__name__}: {error}. "
            "Install the project's pinned versions again, or review without it."
        ) from error
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
    return fiftyone


def _disconnect() -> None:
    link = sys.modules.get("fiftyone.core.odm.database")
    if link is not None:
        link._disconnect()
