"""A real PostgreSQL of its own for a test: on 127.0.0.1, with a password, gone afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tasks.ports import HOST, free_port, listens

PASSWORD = "zwei+geheim%Worte"  # to be escaped in a URL, so that both spellings are looked for


@dataclass(frozen=True)
class Postgres:
    """Its user is `de`, its database `postgres`."""

    port: int

    def url(self, password: str | None = None, scheme: str = "postgresql+asyncpg") -> str:
        return f"{scheme}://de{':' + password if password else ''}@{HOST}:{self.port}/postgres"


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Skips the test where PostgreSQL is not installed."""
    if not (shutil.which("initdb") and shutil.which("postgres")):
        pytest.skip("PostgreSQL (initdb, postgres) is not installed")
    # It refuses to run as root, and root's folders of tests are closed to others.
    other = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="de-postgres-"))
    try:
        (folder / "password").write_text(PASSWORD)
        if other:
            for path in (folder, folder / "password"):
                shutil.chown(path, "nobody", "nogroup")
        data = str(folder / "data")
        options = ["--username=de", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}", "--no-sync"]
        subprocess.run(["initdb", "-D", data, *options], check=True, capture_output=True, cwd=folder, **other)
        port = free_port()
        settings = [f"listen_addresses={HOST}", "unix_socket_directories=", "fsync=off"]
        command = ["postgres", "-D", data, "-p", str(port), *(w for s in settings for w in ("-c", s))]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **other)
        try:
            deadline = time.monotonic() + 60
            while not listens(port):
                assert server.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.1)
            yield Postgres(port)
        finally:
            server.send_signal(signal.SIGINT)  # the fast shutdown
            server.wait(60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
