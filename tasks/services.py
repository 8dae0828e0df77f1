"""The services of `de up` as its status page shows them; and those of the review: MongoDB and the FiftyOne App."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks.database import own_server_uri
from tasks.ports import HOST, listens
from tasks.shown_dataset import newest_dataset, source_of
from tasks.supervisor import Child, Supervisor

RUNNING, STARTING, DEAD = "running", "starting", "died"
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LOOK_SECONDS = 10.0


@dataclass(frozen=True)
class Service:
    """state: one of the above, or a word of its own; seconds: since its last start; last_line: of its log."""

    name: str
    state: str
    address: str = ""
    restarts: int = 0
    seconds: float = 0.0
    last_line: str = ""


def of_child(child: Child, address: str, ready: Callable[[], bool] = lambda: True) -> Service:
    """How a supervised process stands; `ready` is asked only while it lives."""
    state = DEAD if not child.alive else RUNNING if ready() else STARTING
    lines = [line for line in _ESCAPES.sub("", child.tail()).splitlines() if line.strip()]
    last = lines[-1].strip() if lines else ""
    return Service(child.name, state, address, len(child.starts) - 1, time.monotonic() - child.starts[-1], last)


class Review:
    """MongoDB and the App among the children of a supervisor. Neither is essential: flows that need no FiftyOne run on.

    Where FIFTYONE_DATABASE_URI names a server of the user's, that one is used and none is started.
    """

    def __init__(
        self, supervisor: Supervisor, workspace: Path, port: int, shown: Path | None, environment: Mapping[str, str]
    ) -> None:
        self._supervisor, self._workspace, self._port = supervisor, workspace, port
        self._shown, self._environment = shown, environment
        self._own = bool(os.environ.get("FIFTYONE_DATABASE_URI"))
        self._database = self._app = None
        self._uri = None  # of our server when the App was started
        self._looked = -_LOOK_SECONDS

    def start_database(self) -> None:
        if not self._own:
            self._database = self._start("mongod", "tasks.database_service")

    def look(self) -> list[Service]:
        """Start the App when there is something to show; how both stand."""
        uri = None if self._own else own_server_uri()
        if self._app is None:
            self._start_app(uri)
        elif uri and uri != self._uri and self._app.alive:  # MongoDB has come back under another address
            self._uri = uri
            self._app.process.terminate()
        return [self._database_service(uri), self._app_service()]

    def _start_app(self, uri: str | None) -> None:
        if self._shown is None and time.monotonic() - self._looked > _LOOK_SECONDS:
            self._looked, self._shown = time.monotonic(), newest_dataset(self._workspace)
        if self._shown is not None and (self._own or uri):
            real = source_of(self._shown)
            arguments = [str(self._shown), str(self._port), *([str(real)] if real else [])]
            self._uri, self._app = uri, self._start("app", "tasks.app_service", *arguments)

    def _start(self, name: str, module: str, *arguments: str) -> Child:
        # -P: a folder `tasks` of the workspace is not taken for ours.
        command = [sys.executable, "-P", "-m", module, *arguments]
        log = self._workspace / ".prefect" / "logs" / f"{name}.log"
        child = Child(name, command, self._environment, log, self._workspace, essential=False)
        self._supervisor.start(child)
        return child

    def _database_service(self, uri: str | None) -> Service:
        if self._database is None:
            return Service("mongod", "yours", "FIFTYONE_DATABASE_URI")
        address = uri.removeprefix("mongodb://").partition("/")[0] if uri else ""
        return of_child(self._database, address, lambda: uri is not None)

    def _app_service(self) -> Service:
        if self._app is None:
            return Service("app", "waits", "for a generated dataset" if self._shown is None else "for MongoDB")
        from tasks.fiftyone_dataset import dataset_name

        address = f"http://{HOST}:{self._port}/datasets/{dataset_name(self._shown)}"
        return of_child(self._app, address, lambda: listens(self._port))
