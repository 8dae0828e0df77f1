"""The slots of a run on this machine: one long-lived worker process with its own models each. A GPU is one slot."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from engine.cores import usable_cores
from engine.errors import RunFailed
from engine.generation.crew import Worker
from engine.generation.devices import environment_of, gpus_for
from engine.generation.source import DrawerSource
from engine.generation.worker_process import WorkerProcess
from engine.sections import Settings
from tasks.gpus import own_gpus


@dataclass
class Slots:
    """The workers of a run; a task borrows a free one.

    Attributes:
        free: those that are ready for a shard.
        give_back: called with a borrowed worker; puts it among the free ones, now or when it is ready again.
        fatal: after it no further shard is begun.
    """

    workers: Sequence[Worker]
    free: queue.Queue[Worker]
    give_back: Callable[[Worker], None]
    fatal: BaseException | None = None

    @contextmanager
    def borrowed(self) -> Iterator[Worker]:
        """A free worker; waits for one. Raises RunFailed when no shard is to be begun any more."""
        worker = None
        while worker is None:
            if self.fatal is not None:
                raise RunFailed(f"not begun: {self.fatal}")
            try:
                worker = self.free.get(timeout=1.0)
            except queue.Empty:
                continue
        try:
            yield worker
        finally:
            self.give_back(worker)

    def abandon(self, error: BaseException) -> None:
        """Begin nothing more, and end what runs: threads that wait for a worker come back at once."""
        self.fatal = error
        for worker in self.workers:
            worker.stop()


@contextmanager
def own_environments(settings: Settings, workers: int) -> Iterator[list[dict[str, str]]]:
    """The environment of each worker process: a GPU that no other flow draws on, or its share of the cores.

    Raises:
        ConfigError: no worker, or more of them than GPUs.
    """
    gpus = gpus_for(settings, workers)
    if gpus:
        with own_gpus(gpus, workers) as own:
            yield [environment_of(gpu) for gpu in own]
    else:
        threads = str(max(1, usable_cores() // workers))
        yield [{"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}] * workers


@contextmanager
def open_slots(source: DrawerSource, out: Path | str, workers: int) -> Iterator[Slots]:
    """Start worker processes; they end with the block, or with this process however that ends.

    Raises:
        ConfigError: no worker, or more of them than GPUs.
    """
    with ExitStack() as stack:
        environments = stack.enter_context(own_environments(source.settings, workers))
        crew = [stack.enter_context(WorkerProcess(source, out, environment)) for environment in environments]
        free: queue.Queue[Worker] = queue.Queue()
        for worker in crew:
            free.put(worker)
        yield Slots(crew, free, free.put)
