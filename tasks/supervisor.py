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
_MARK = "DE_SUPERVISOR"  # in the environment of all that a supervisor started, however indirectly
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass
class Child:
    """One process to keep alive: its argument list (never a shell line), environment, log file and folder."""

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    folder: Path
    process: subprocess.Popen | None = None
    starts: list[float] = field(default_factory=list)

    def start(self) -> None:
        """Start it in a session of its own, so that Ctrl-C in the terminal reaches only the supervisor."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                list(self.arguments),
                env={**self.environment, _MARK: str(os.getpid())},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self.starts.append(time.monotonic())

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def tail(self, lines: int = 15) -> str:
        """The end of the log, for an error message."""
        if not self.log.is_file():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Supervisor:
    """Restarts children that die; gives up when one dies `max_restarts` times within `window` seconds.

    A dead child's own children (a worker's running flow) work on, and are ended by `stop`.
    """

    def __init__(self, max_restarts: int = 5, window: float = 300.0) -> None:
        self.children: list[Child] = []
        self.max_restarts, self.window = max_restarts, window
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
            recent = [t for t in child.starts if time.monotonic() - t < self.window]
            if len(recent) > self.max_restarts:
                raise RunFailed(
                    f"The {child.name} died {len(recent)} times within {self.window:.0f} s and is not started again. "
                    f"Its log is {child.log}; it ends with:\n{child.tail()}"
                )
            child.start()
            restarted.append(child.name)
        return restarted

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
        for child in reversed(self.children[1:]):
            _end([child.process], grace)
        first = self.children[0].process if self.children else None
        _end([process for process in _marked() if not _belongs_to(process, first)], grace)
        if first is not None:
            _end([first], grace)
        self.children.clear()


def _marked() -> list[psutil.Process]:
    """Living descendants that some child of a supervisor of this process left behind, or that such a child is."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.environ().get(_MARK) == str(os.getpid()):
                found.append(process)
    return found


def _belongs_to(process: psutil.Process, first: subprocess.Popen | None) -> bool:
    """Is it `first` or one of its descendants?"""
    try:
        return first is not None and first.pid in {process.pid, *(p.pid for p in process.parents())}
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
