"""What listens on this machine, and the database of the review."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

from engine.errors import RunFailed
from engine.generation.disk import nearest_folder
from tasks.doctor_check import OK, PROBLEM, WARNING, Check
from tasks.home import home_folder
from tasks.mongod import find_mongod, running_port, server_answers
from tasks.ports import HOST, is_free
from tasks.programs import call

PORTS = {  # port -> (what of ours listens there, words of its command line, what to do where another program does)
    4200: ("Prefect's server", ("prefect",), "`de up --port N` takes another one."),
    5151: (
        "the FiftyOne App",
        ("tasks.app_server",),
        "`de app --port N`, `de up --app-port N` take another one.",
    ),
}


@dataclass(frozen=True)
class Listener:
    """A program that listens on a port; empty words where the system does not tell which."""

    pid: int | None
    words: tuple[str, ...] = ()


def check_port(port: int, listener: Listener | None) -> Check:
    """Whether a port of ours is free, in our use, or taken.

    Args:
        listener: who listens there; None for nobody.
    """
    ours, marks, cure = PORTS[port]
    name = f"port {port}"
    if listener is None:
        return Check(name, OK, f"free for {ours}")
    if any(mark in word for word in listener.words for mark in marks):
        return Check(name, OK, f"{ours} is running (process {listener.pid})")
    program = Path(listener.words[0]).name if listener.words else "another program"
    who = program if listener.pid is None else f"{program} (process {listener.pid})"
    return Check(name, WARNING, f"taken by {who}", cure)


def port_checks(folder: Path) -> list[Check]:
    """Our ports as they are now."""
    return [check_port(port, find_listener(port)) for port in PORTS]


def find_listener(port: int) -> Listener | None:
    """Who listens on a port of 127.0.0.1; None where it can be had."""
    if is_free(port):
        return None
    try:
        pids = [
            entry.pid
            for entry in psutil.net_connections("tcp")
            if entry.status == psutil.CONN_LISTEN and entry.laddr.port == port and entry.pid
        ]
        return Listener(pids[0], tuple(psutil.Process(pids[0]).cmdline())) if pids else Listener(None)
    except (psutil.Error, OSError):  # other users' processes
        return Listener(None)


def database_checks(folder: Path) -> list[Check]:
    """The MongoDB server that FiftyOne needs: the user's own, or the one that comes with the project."""
    own = os.environ.get("FIFTYONE_DATABASE_URI")
    if own:  # never printed: it may hold a password
        if server_answers(own, 3.0):
            return [Check("mongod", OK, "the server of FIFTYONE_DATABASE_URI answers")]
        cure = "Start that server, mend the address, or unset the variable to use the one that comes with the project."
        return [Check("mongod", PROBLEM, "the server of FIFTYONE_DATABASE_URI does not answer", cure)]
    return [_check_binary(), _check_home(home_folder())]


def _check_binary() -> Check:
    try:
        binary = find_mongod()
    except RunFailed as error:
        found, _, cure = str(error).partition(". ")
        return Check("mongod", PROBLEM, found, cure)
    try:
        version = call(
            [str(binary), "--version"], binary.parent, "ask mongod for its version", seconds=60
        ).splitlines()[0]
    except (RunFailed, IndexError) as error:
        cure = (
            "It does not run here: put another mongod on the PATH, or point FIFTYONE_DATABASE_URI at a server of yours."
        )
        return Check("mongod", PROBLEM, f"{binary}: {error}", cure)
    port = running_port(home_folder() / "mongo")
    state = "not running: started when it is needed" if port is None else f"running on {HOST}:{port}"
    return Check("mongod", OK, f"{version.removeprefix('db version ')} at {binary}; {state}")


def _check_home(home: Path) -> Check:
    there = nearest_folder(home)
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return Check("home", OK, f"{home} for the review's database")
    cure = "Set DE_HOME to a folder that you may write in."
    return Check("home", PROBLEM, f"{there} cannot be written in, and the review's database belongs below it", cure)
