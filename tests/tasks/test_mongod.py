"""Our MongoDB server: loopback only, shared by those who use it at once, stopped by the last, deaf to kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tasks.database import database
from tasks.home import exclusive_lock
from tasks.mongod import running_port

ROOT = Path(__file__).parents[2]
HOLD = "from tasks.database import database\nwith database() as uri:\n    print(uri, flush=True)\n    input()"


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("DE_HOME", str(tmp_path))
    monkeypatch.delenv("FIFTYONE_DATABASE_URI", raising=False)
    return tmp_path / "mongo"


def _hold() -> tuple[subprocess.Popen, str]:
    """Another process that uses the database until it is told to end."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    return process, process.stdout.readline().strip()


def _server(folder: Path) -> psutil.Process:
    return psutil.Process(int((folder / "data" / "mongod.lock").read_text()))


def test_two_users_share_one_server_and_the_last_one_stops_it(folder):
    with database() as uri:
        server = _server(folder)
        listening = [c.laddr.ip for c in server.net_connections() if c.status == psutil.CONN_LISTEN]
        assert listening == ["127.0.0.1"]
        assert not any(c.status == "LISTEN" for c in server.net_connections("unix"))
        assert folder.stat().st_mode & 0o077 == 0
        other, its_uri = _hold()
        assert its_uri == uri
        with database() as again:
            assert again == uri
    assert running_port(folder), "the other process still uses it"
    other.communicate("\n", timeout=120)
    assert other.returncode == 0 and running_port(folder) is None


def test_a_killed_user_leaves_a_server_that_the_next_one_takes_over_and_stops(folder):
    other, its_uri = _hold()
    server = _server(folder)
    other.send_signal(signal.SIGKILL)
    other.communicate(timeout=120)
    assert server.is_running()
    with database() as uri:
        assert uri == its_uri
    assert running_port(folder) is None


def test_a_killed_server_is_started_again_with_what_it_had_acknowledged(folder):
    import pymongo

    with database() as uri:
        with pymongo.MongoClient(uri, journal=True) as client:
            client.test.things.insert_one({"kept": 1})
        _server(folder).kill()
        psutil.wait_procs([_server(folder)], timeout=10)
    with database() as uri, pymongo.MongoClient(uri) as client:
        assert client.test.things.count_documents({}) == 1


def test_processes_that_start_together_get_the_same_server(folder):
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    uris = {process.stdout.readline() for process in starters}
    assert len(uris) == 1 and uris != {""}
    for process in starters:
        process.communicate("\n", timeout=120)
    assert [p.returncode for p in starters] == [0, 0, 0] and running_port(folder) is None


def test_another_programs_process_is_never_taken_for_the_server(folder):
    (folder / "data").mkdir(parents=True)
    for content in (str(os.getpid()), "", "x", "999999999"):
        (folder / "data" / "mongod.lock").write_text(content)
        assert running_port(folder) is None


def test_a_lock_is_free_once_its_holder_is_gone(tmp_path):
    path = tmp_path / "lock"
    code = (
        f"from pathlib import Path; from tasks.home import exclusive_lock\nwith exclusive_lock(Path({str(path)!r})):\n"
    )
    code += "    print('held', flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    holder.stdout.readline()
    holder.kill()
    holder.communicate()
    started = time.monotonic()
    with exclusive_lock(path):
        assert time.monotonic() - started < 1
