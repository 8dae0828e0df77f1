"""A long-lived worker process with its own models, driven from a thread. It is the one that may be killed."""

from __future__ import annotations

import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from engine import errors
from engine.errors import RunFailed
from engine.generation.lock import Busy
from engine.generation.records import ShardCounts
from engine.generation.source import DrawerSource

log = logging.getLogger(__name__)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
GRACE_S = 5.0
SILENT_S = 120.0  # many heartbeats: a busy machine is slow, and a long call into C may hold the interpreter
_USER_ERRORS = {
    kind.__name__: kind
    for kind in (errors.ConfigError, errors.DatasetError, errors.ModelError, errors.RunConflict, Busy)
}


class WorkerDied(RunFailed):
    """The worker process ended, or had to be ended, in the middle of a shard."""


class WorkerNotStarted(RunFailed):
    """The worker process ended before it was ready."""


class ShardFailed(RunFailed):
    """A shard raised an error inside the worker process, which lives on."""


class WorkerProcess:
    """A context manager around one worker process; starts it again when it died and another shard is wanted.

    A process that gives no sign of life, or none of progress for `generation.stall_seconds`, is killed: a frozen one
    keeps its lock on the shard for as long as it exists. Ends with the block, and with this process however that ends.
    Its methods may be called from any thread; calls of `run` take turns.

    Args:
        source: where its drawer comes from.
        out: the folder or URL of the run's plan and shards.
        env: added to the environment, for example CUDA_VISIBLE_DEVICES.
        silent_s: seconds without a sign of life after which it counts as frozen.
    """

    def __init__(
        self, source: DrawerSource, out: Path | str, env: Mapping[str, str] | None = None, silent_s: float = SILENT_S
    ):
        self._start = {"source": source.as_json(), "out": str(out), "parent": os.getpid()}
        # The child finds the modules that this process finds, and none beside its working folder (-P).
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        self._env = os.environ | ONE_THREAD | {"PYTHONPATH": path} | dict(env or {})
        self._silent_s, self._stall_s = silent_s, source.settings.generation.stall_seconds
        self._turn = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._messages: queue.Queue[dict | None] = queue.Queue()  # of `_process`; None at its end
        self._released = threading.Event()  # set when the keeper of `_process` may go
        self._identity: dict | None = None
        self._lost = False  # `_process` was given up; a kill may take its time
        self._closed = False

    def __enter__(self) -> WorkerProcess:
        self._launch()
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is not None:
            self.kill()
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the worker; None before the start."""
        return self._process.pid if self._process else None

    @property
    def identity(self) -> dict:
        """What its drawer says of itself; waits until the models are loaded.

        Raises:
            ModelError, ConfigError, DatasetError: from the loader.
            WorkerNotStarted: the process ended.
        """
        with self._turn:
            self._ensure_ready()
            return self._identity

    def run(
        self, shard: int, retry_failed: bool = False, progress: Callable[[int], object] | None = None
    ) -> ShardCounts:
        """Have a shard done; see `run_shard`.

        Raises:
            WorkerDied: the process ended, or was killed because it hung; nothing of the shard was committed. Call
                again: a new one is started.
            WorkerNotStarted: it cannot be started.
            ShardFailed: an error inside the worker. OSError is raised as such, with its errno.
            Busy, RunConflict, ModelError, ConfigError, DatasetError: as from `run_shard`.
        """
        with self._turn:
            self._ensure_ready()
            try:
                self._send({"shard": shard, "retry_failed": retry_failed})
                patience = _Patience(self._silent_s, self._stall_s)
                while (message := self._receive(patience)) is not None:
                    if "progress" in message:
                        if progress:
                            progress(message["progress"])
                    elif "done" in message:
                        return ShardCounts.from_dict(message["done"])
                    else:
                        raise _error(message["error"], shard)
            except BaseException as error:
                if not isinstance(error, (RunFailed, OSError, errors.UserError)):
                    self.kill()  # an answer may be half read: this conversation is over
                raise
            why = patience.lost or "ended"
            raise WorkerDied(f"worker process {self.pid} {why} in shard {shard} ({self._exit_code()})")

    def kill(self) -> None:
        """End the process at once and start none again."""
        self._closed = True
        if self._process:
            self._process.kill()

    def stop(self) -> None:
        """Have the process clean up and end, within GRACE_S or by force, and start none again."""
        self._closed = True
        if self._process:
            self._process.terminate()
            force = threading.Timer(GRACE_S, self._process.kill)
            force.daemon = True
            force.start()

    def close(self) -> None:
        """Let the process end; kill it when it does not."""
        self._closed = True
        if not self._process:
            return
        self._close_pipe(self._process.stdin)
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):  # stuck in the kernel, it ends when it can
                self._process.wait(GRACE_S)
        self._released.set()

    def _ensure_ready(self) -> None:
        if self._closed:
            raise WorkerDied("the worker was closed")
        if self._process is None or self._lost or self._process.poll() is not None:
            if self._process is not None:
                log.warning("Worker process %s ended (%s); a new one is started.", self.pid, self._exit_code())
                self._close_pipe(self._process.stdin)
                self._released.set()
            self._launch()
        if self._identity is None:
            patience = _Patience(self._silent_s, self._stall_s)
            message = self._receive(patience)
            if message is None:
                why = patience.lost or "ended"
                raise WorkerNotStarted(f"worker process {self.pid} {why} before it was ready ({self._exit_code()})")
            if "error" in message:
                raise _error(message["error"])
            self._identity = message["ready"]

    def _launch(self) -> None:
        self._identity, self._lost = None, False
        started: queue.Queue = queue.Queue()
        self._messages, self._released = queue.Queue(), threading.Event()
        arguments = (started, self._messages, self._released)
        keeper = threading.Thread(target=self._keep, args=arguments, daemon=True, name="worker-keeper")
        keeper.start()
        process = started.get()
        if isinstance(process, BaseException):
            raise WorkerNotStarted(f"no worker process could be started: {process}") from process
        self._process = process
        self._send(self._start)

    def _keep(self, started: queue.Queue, messages: queue.Queue, released: threading.Event) -> None:
        """Start the process, read what it says, and stay: the kernel ends a child with the THREAD that started it."""
        command = [sys.executable, "-P", "-m", "engine.generation.worker"]
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self._env, text=True, encoding="ascii"
            )
        except BaseException as error:
            started.put(error)
            return
        started.put(process)
        try:
            with process.stdout as lines:
                for line in lines:
                    if line.endswith("\n"):
                        messages.put(json.loads(line))
        finally:
            messages.put(None)
        released.wait()  # not process.wait(): while that waits, nobody else can see that the process ended

    def _send(self, message: dict) -> None:
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the end is seen when its answer is read

    def _receive(self, patience: _Patience) -> dict | None:
        """The next message that says more than "alive"; None at the end of the process, which may be ours to bring."""
        while True:
            try:
                message = self._messages.get(timeout=patience.left())
            except queue.Empty:
                if patience.left() > 0:
                    continue
                log.warning("Worker process %s %s: it is killed.", self.pid, patience.judge())
                self._lost = True
                self._process.kill()
                return None
            if message is None or "alive" not in message:
                patience.progress()
                return message
            patience.alive()

    @staticmethod
    def _close_pipe(pipe) -> None:
        try:
            pipe.close()
        except OSError:
            pass  # unsent words to a process that is gone

    def _exit_code(self) -> str:
        try:
            code = self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            return "its output is closed"
        return f"signal {-code}" if code < 0 else f"exit code {code}"


class _Patience:
    """How long a worker may still be waited for.

    Attributes:
        lost: why it was given up, in words; empty as long as it was not.
    """

    def __init__(self, silent_s: float, stall_s: float):
        self._silent_s, self._stall_s = silent_s, stall_s
        self.lost = ""
        self.progress()

    def alive(self) -> None:
        """It breathes, and may be stuck all the same."""
        self._heard = time.monotonic()

    def progress(self) -> None:
        """It has got something done."""
        self._heard = self._moved = time.monotonic()

    def left(self) -> float:
        """Seconds, from 0."""
        return max(0.0, min(self._heard + self._silent_s, self._moved + self._stall_s) - time.monotonic())

    def judge(self) -> str:
        """Give it up."""
        silent = time.monotonic() - self._heard >= self._silent_s
        self.lost = (
            f"gave no sign of life for {self._silent_s:.0f} s"
            if silent
            else f"got nothing done for {self._stall_s:.0f} s (generation.stall_seconds)"
        )
        return self.lost


def _error(described: dict, shard: int | None = None) -> Exception:
    """The worker's exception as one of this process."""
    name, text = described["type"], described["text"]
    if name in _USER_ERRORS:
        return _USER_ERRORS[name](text)
    if described["errno"] is not None:
        return OSError(described["errno"], text)
    where = "while it started" if shard is None else f"in shard {shard}"
    return ShardFailed(f"{name} {where}: {text}")
