"""Keeps a few child processes alive: starts them, restarts one that dies, stops all of them together."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from engine.errors import RunFailed

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
MARK = "DE_SUPERVISOR"  # in the environment of all that a supervisor started, however indirectly
_LOG_BYTES, _TAIL_BYTES = 20_000_000, 16_384
_LONGEST_PAUSE = 60.0
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass
class Child:
    """One process to keep alive: its argument list (never a shell line), environment, log file and folder.

    Attributes:
        essential: where it keeps dying, the supervisor gives up. Another one is tried again for ever.
        starts: times of its starts (monotonic seconds).
        next_start: for one that died: when it is started again.
    """

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    folder: Path
    essential: bool = True
    process: subprocess.Popen | None = None
    starts: list[float] = field(default_factory=list)
    next_start: float | None = None

    def start(self) -> None:
        """Start it in a session of its own, so that Ctrl-C in the terminal reaches only the supervisor."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.is_file() and self.log.stat().st_size > _LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                list(self.arguments),
                env={**self.environment, MARK: str(os.getpid())},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self.starts.append(time.monotonic())
        self.next_start = None

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def tail(self, lines: int = 15) -> str:
        """The end of the log, for an error message."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
                return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


class Supervisor:
    """Restarts children that die: at once the first time, then after `pause` seconds, doubled each time up to a minute.

    It gives up when an essential one dies more than `max_restarts` times within `window` seconds. A dead child's own
    children (a worker's running flow) work on, and are ended by `stop`.
    """

    def __init__(self, max_restarts: int = 5, window: float = 300.0, pause: float = 1.0) -> None:
        self.children: list[Child] = []
        self.max_restarts, self.window, self.pause = max_restarts, window, pause
        if _LIBC is not None:  # orphans become our children instead of init's: `stop` finds them
            _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)

    def start(self, child: Child) -> None:
        self.children.append(child)
        child.start()

    def check(self) -> list[str]:
        """Restart what died and return its names.

        Raises:
            RunFailed: a child keeps dying; the message ends with its last log lines.
        """
        restarted = []
        self._bury_orphans()
        for child in self.children:
            if child.alive:
                continue
            if child.next_start is None:
                child.next_start = time.monotonic() + self._pause_of(child)
            if time.monotonic() >= child.next_start:
                child.start()
                restarted.append(child.name)
        return restarted

    def _pause_of(self, child: Child) -> float:
        """Seconds before a child that has just died is started again."""
        deaths = sum(time.monotonic() - start < self.window for start in child.starts)
        if child.essential and deaths > self.max_restarts:
            raise RunFailed(
                f"The {child.name} died {deaths} times within {self.window:.0f} s and is not started again. "
                f"Its log is {child.log}; it ends with:\n{child.tail()}"
            )
        return min(self.pause * 2 ** (deaths - 2), _LONGEST_PAUSE) if deaths > 1 else 0.0

    def _bury_orphans(self) -> None:
        """Take note of the end of processes that became ours when their parent died, so that they vanish."""
        own = {child.process.pid for child in self.children}
        for process in psutil.Process().children():
            with suppress(psutil.Error, ChildProcessError):
                if process.pid not in own and process.status() == psutil.STATUS_ZOMBIE:
                    os.waitpid(process.pid, os.WNOHANG)

    def stop(self, grace: float = 20.0) -> None:
        """End all, last started first: SIGTERM, and after `grace` seconds SIGKILL to what is left.

        What dead children left running ends before the child that was started first: a flow can still tell the server.
        """
        while self.children:
            _end([self.children.pop().process], grace)
            living = {child.process.pid for child in self.children}
            _end([process for process in _marked() if not _belongs_to(process, living)], grace)


def _marked() -> list[psutil.Process]:
    """Living descendants that some child of a supervisor of this process left behind, or that such a child is."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.environ().get(MARK) == str(os.getpid()):
                found.append(process)
    return found


def _belongs_to(process: psutil.Process, children: set[int]) -> bool:
    """Is it one of these, or a descendant of one?"""
    try:
        return not children.isdisjoint({process.pid, *(p.pid for p in process.parents())})
    except psutil.NoSuchProcess:
        return False


def _end(processes: Sequence[subprocess.Popen | psutil.Process], grace: float) -> None:
    """SIGTERM to all, then SIGKILL to those that still live after `grace` seconds, with their descendants."""
    for process in processes:
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            process.terminate()
    deadline = time.monotonic() + grace
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, psutil.TimeoutExpired):
            logger.warning("Process %s did not stop within %.0f s: killed.", process.pid, grace)
            _kill_tree(process.pid)
            process.wait()


def _kill_tree(pid: int) -> None:
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [*root.children(recursive=True), root]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _die_with_parent() -> None:
    """In the new child on Linux: be terminated when the supervisor is killed. Nothing may allocate much here."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
