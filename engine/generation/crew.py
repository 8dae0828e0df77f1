"""Several workers, one queue of shards. A shard that fails is tried again; the others go on."""

from __future__ import annotations

import errno
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from engine.errors import RunFailed, UserError
from engine.generation.lock import Busy
from engine.generation.plan_file import load_plan
from engine.generation.records import ShardCounts
from engine.generation.shard import run_shard
from engine.generation.source import DrawerSource
from engine.generation.worker_process import WorkerNotStarted

if TYPE_CHECKING:
    from engine.generation.draw import Drawer

log = logging.getLogger(__name__)
ATTEMPTS = 3
NO_USE_TRYING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # the next shard would end the same way
MAX_LISTED = 10


class Worker(Protocol):
    """Does shards, one after the other: a `LocalWorker` or a `WorkerProcess`."""

    identity: dict

    def run(self, shard: int, retry_failed: bool, progress: Callable[[int], object] | None) -> ShardCounts: ...

    def stop(self) -> None: ...


class LocalWorker:
    """Does shards in this process."""

    def __init__(self, source: DrawerSource, out: Path | str):
        self._source, self._out, self._plan = source, out, None

    def __enter__(self) -> LocalWorker:
        self._drawer: Drawer = self._source.load()
        return self

    def __exit__(self, *_) -> None:
        del self._drawer

    @property
    def identity(self) -> dict:
        """What the drawer says of itself."""
        return self._drawer.identity

    def run(
        self, shard: int, retry_failed: bool = False, progress: Callable[[int], object] | None = None
    ) -> ShardCounts:
        """See `run_shard`."""
        self._plan = self._plan or load_plan(self._out)
        return run_shard(self._out, shard, self._drawer, plan=self._plan, retry_failed=retry_failed, progress=progress)

    def stop(self) -> None:
        """Nothing to end."""


def drive(crew: Sequence[Worker], shards: Sequence[int], progress: Callable[[int], object]) -> None:
    """Have all shards done.

    Args:
        crew: one worker works in the calling thread, more in a thread each.
        progress: called with numbers of items, negative where an attempt failed.

    Raises:
        UserError: a worker's; no further shard is begun.
        RunFailed: lists the shards that failed every attempt; all others are committed.
        Busy: all that is left is in other processes' hands.
    """
    work = _Work(shards, progress)
    if len(crew) == 1:
        work.serve(crew[0])
    else:
        _serve_in_threads(work, crew)
    work.look_again(crew[0])
    work.conclude()


def _serve_in_threads(work: _Work, crew: Sequence[Worker]) -> None:
    with ThreadPoolExecutor(len(crew)) as threads:
        served = [threads.submit(work.serve, worker) for worker in crew]
        try:
            for future in served:
                future.result()
        except BaseException:  # Ctrl-C: the threads wait for their workers
            work.stop.set()
            for worker in crew:
                worker.stop()
            raise


class _Work:
    """The queue, and what became of its shards."""

    def __init__(self, shards: Sequence[int], progress: Callable[[int], object]):
        self.total = len(shards)
        self.waiting = deque(shards)
        self.progress = progress
        self.retry_failed = True
        self.stop = threading.Event()
        self.failed: dict[int, str] = {}
        self.busy: dict[int, Busy] = {}
        self.fatal: list[UserError] = []

    def serve(self, worker: Worker) -> None:
        """Do shards until none is left."""
        while not self.stop.is_set():
            try:
                shard = self.waiting.popleft()
            except IndexError:
                return
            for attempt in range(1, ATTEMPTS + 1):
                if self._attempt(worker, shard, attempt) or self.stop.is_set():
                    break

    def _attempt(self, worker: Worker, shard: int, attempt: int) -> bool:
        """Try a shard; True when it needs no further attempt."""
        reported = []

        def report(items: int) -> None:
            reported.append(items)
            self.progress(items)

        try:
            worker.run(shard, self.retry_failed, report)
        except Busy as error:
            self.busy[shard] = error
            return True
        except UserError as error:
            self.fatal.append(error)
            self.stop.set()
        except Exception as error:
            self.failed[shard] = f"{type(error).__name__}: {error}"
            if not self.stop.is_set():
                log.warning("Shard %d failed (attempt %d of %d): %s", shard, attempt, ATTEMPTS, self.failed[shard])
            if isinstance(error, WorkerNotStarted) or getattr(error, "errno", None) in NO_USE_TRYING:
                self.stop.set()
        else:
            self.failed.pop(shard, None)
            return True
        self.progress(-sum(reported))
        return False

    def look_again(self, worker: Worker) -> None:
        """Shards that others had in hand may be done by now, or left."""
        self.waiting.extend(sorted(self.busy))
        self.busy.clear()
        self.retry_failed = False
        self.serve(worker)

    def conclude(self) -> None:
        """Raise what has to be raised."""
        if self.fatal:
            raise self.fatal[0]
        if self.failed:
            listed = "; ".join(f"shard {shard}: {self.failed[shard]}" for shard in sorted(self.failed)[:MAX_LISTED])
            more = f"; and {len(self.failed) - MAX_LISTED} more" if len(self.failed) > MAX_LISTED else ""
            begun = f", {len(self.waiting)} were not begun" if self.waiting else ""
            raise RunFailed(
                f"{len(self.failed)} of {self.total} shards failed{begun} ({listed}{more}). What was finished is kept: "
                "put the cause right and give the same command again."
            )
        if self.busy:
            raise self.busy[min(self.busy)]
