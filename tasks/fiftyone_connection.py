"""FiftyOne, connected to our MongoDB: the one door through which this project uses it.

FiftyOne reads its settings from the environment when it is imported, connects at once, and keeps the connection in
many places. So it is imported here, with the environment set for the import alone, and a process that has connected
once stays connected until it ends: only then is the server given back.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import ModuleType

from engine.errors import RunFailed
from tasks.database import database, own_server_uri
from tasks.home import home_folder
from tasks.mongod import server_answers

_lock = threading.RLock()
_users = 0  # contexts open now
_place: tuple[str, str] | None = None  # what the connection was made for: the user's own server, the home folder
_uri = ""
_held = ExitStack()  # disconnects, then gives the server back
_owner = 0  # the process that holds it; a fork of it does not


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
    global _users
    with _lock:
        if _users == 0:
            _ensure_connected()
        _users += 1
    try:
        yield sys.modules["fiftyone"]
    finally:
        with _lock:
            _users -= 1


def _ensure_connected() -> None:
    """Keep the connection if it is the right one and alive, else make it anew."""
    global _place, _uri, _held, _owner
    place = (os.environ.get("FIFTYONE_DATABASE_URI", ""), str(home_folder()))
    if _place == place and _owner == os.getpid():
        if server_answers(_uri, seconds=5.0) if place[0] else own_server_uri() == _uri:
            return
    _give_back()
    if not _owner:
        atexit.register(_give_back)  # before FiftyOne registers its own: the last registered runs first
    with ExitStack() as starting:
        uri = starting.enter_context(database())
        starting.callback(_disconnect)
        _connect(uri)
        _held = starting.pop_all()
    _place, _uri, _owner = place, uri, os.getpid()


def _give_back() -> None:
    global _place, _held
    held, _held, _place = _held, ExitStack(), None
    if _owner == os.getpid():
        held.close()


def _connect(uri: str) -> None:
    known = "fiftyone" in sys.modules
    wanted = fiftyone_environment(uri)
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        import fiftyone
        import fiftyone.core.odm.database as link

        if known:  # to another server, or to this one before it was started again
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


def _disconnect() -> None:
    """Close FiftyOne's connections. It would wait for a server that has gone, and reuse a client that was closed."""
    link = sys.modules.get("fiftyone.core.odm.database")
    if link is not None:
        link._disconnect()
    factory = sys.modules.get("fiftyone.factory.repo_factory")
    if factory is not None:
        factory._db = None
        factory.RepositoryFactory.repos.clear()
