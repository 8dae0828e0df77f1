"""Slots on the nodes of a Ray cluster. Ray finds a node with a free GPU (or core) for each one.

Ray itself retries nothing: a lost node ends an attempt of a Prefect task, and the next attempt, in any slot, is in the
open.
Tasks of Prefect's RayTaskRunner would not do: they must reach Prefect's server, which listens on 127.0.0.1, from every
node; and a process that keeps its models between them meets another GPU (`bench/orchestration.py` shows both).
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from engine.errors import ConfigError
from engine.generation.devices import check_workers
from engine.generation.lock import Busy
from engine.generation.records import ShardCounts
from engine.generation.source import DrawerSource
from engine.generation.worker_process import WorkerDied, WorkerNotStarted
from engine.sections import Settings
from tasks.ray_seat import Seat
from tasks.slots import Slots

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)
PULSE_S = 5.0
SILENT_S = 120.0
BUSY_S = 180.0  # a lost node's locks on shared storage live on for a while (NFS: 90 s)
WAITING_S = 60.0  # a slot without a node is spoken of after so long


@contextmanager
def open_ray_slots(address: str, source: DrawerSource, out: str | Path, workers: int) -> Iterator[Slots]:
    """Give a run `workers` slots on a Ray cluster. A slot for which no node has room waits until one has.

    Args:
        address: "auto" for the cluster that runs on this machine, or host:port of its head. This machine must be a node
            of it.
        source: its folders, like `out`, must be there under the same absolute names on every node.

    Raises:
        ConfigError: Ray is not installed, there is no such cluster, or no worker is wanted.
    """
    check_workers(workers)
    with connected(address) as ray:
        options = _needs(source.settings, ray.cluster_resources())
        crew = [RayWorker(ray, source, str(out), options) for _ in range(workers)]
        free: queue.Queue = queue.Queue()
        over = threading.Event()
        finders: list[threading.Thread] = []

        def give_back(worker: RayWorker) -> None:
            if worker.seated:
                free.put(worker)
            else:
                finders.append(threading.Thread(target=_find_seat, args=(worker, free.put, over), daemon=True))
                finders[-1].start()

        try:
            for worker in crew:
                give_back(worker)
            yield Slots(crew, free, give_back)
        finally:
            over.set()
            for worker in crew:
                worker.stop()
            for finder in finders:
                finder.join(10)


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Take part in a Ray cluster inside the `with` block; gives the module `ray`.

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ConfigError("Ray is not installed. `uv sync --extra ray` installs it.") from None
    try:
        if address != "auto":
            _knock(address)
        ray.init(address=address, namespace="diffusion-engine", log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"No Ray cluster can be joined at {address!r} ({reason}). On the first machine: `ray start --head "
            "--include-dashboard=false`; on every other one: `ray start --address=FIRST:6379`; the same token and "
            "RAY_AUTH_MODE on all of them and in this process."
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError or ValueError at once where nobody listens; Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.rpartition("/")[2], int(port)), timeout=10).close()


def _needs(settings: Settings, cluster: dict[str, float]) -> dict[str, float]:
    """What Ray sets aside for a slot: a GPU where the models run on one."""
    device = settings.ldm.device
    cuda = device.startswith("cuda") or (device == "auto" and cluster.get("GPU", 0) > 0)
    return {"num_gpus": 1, "num_cpus": 0} if cuda else {"num_gpus": 0, "num_cpus": 1}


def _find_seat(worker: RayWorker, ready: Callable[[RayWorker], None], over: threading.Event) -> None:
    """Wait until the worker has its place on a node, however long that takes."""
    began, told = time.monotonic(), False
    while not over.is_set():
        if worker.sit_down(1.0):
            ready(worker)
            return
        if not told and time.monotonic() - began > WAITING_S:
            told = True
            log.warning("No node of the Ray cluster has room for one of the slots (%s); it waits.", worker.needs)


class RayWorker:
    """A slot of a Ray cluster: an actor with its own models, made again on another node when it was lost."""

    def __init__(self, ray: Any, source: DrawerSource, out: str, options: dict[str, float]):
        self._ray, self._arguments = ray, (source.as_json(), out)
        # One thread answers that it lives while the other waits for a shard.
        self._kind = ray.remote(Seat).options(max_restarts=0, max_task_retries=0, max_concurrency=2, **options)
        self.needs = ", ".join(f"{value:g} {name[4:-1].upper()}" for name, value in options.items() if value)
        self._seat, self._found, self._where = None, None, ""
        self._hopeless: WorkerNotStarted | None = None
        self._closed = False

    @property
    def seated(self) -> bool:
        """Whether a process of its own waits for work."""
        return bool(self._where) or self._closed

    def sit_down(self, timeout_s: float) -> bool:
        """Ask for a place on a node and wait for it; True when there is one, or none is to be had ever."""
        if self._closed:
            return True
        if self._seat is None:
            self._seat = self._kind.remote(*self._arguments)
            self._found = self._seat.where.remote()
        found = self._found  # `stop` may come in between
        if not self._ray.wait([found], timeout=timeout_s)[0]:
            return False
        try:
            self._where = self._ray.get(found)
        except self._ray.exceptions.RayError as error:
            if getattr(error, "actor_init_failed", False):
                self._hopeless = WorkerNotStarted(f"no worker can be started on the Ray cluster: {_last_line(error)}")
                return True
            self._give_up()  # its node went before it was ready
            time.sleep(timeout_s)
            return False
        return True

    @property
    def identity(self) -> dict:
        """What its drawer says of itself; waits until the models are loaded. Raises as `WorkerProcess.identity`."""
        return self._ask("identity")

    def run(
        self, shard: int, retry_failed: bool = False, progress: Callable[[int], object] | None = None
    ) -> ShardCounts:
        """Have a shard done; raises as `WorkerProcess.run`. A shard in other hands is waited for, for a while."""
        until = time.monotonic() + BUSY_S
        while True:
            try:
                counts = ShardCounts.from_dict(self._ask("run", shard, retry_failed))
                break
            except Busy:
                if time.monotonic() > until:
                    raise
                time.sleep(PULSE_S)
        if progress:
            progress(counts.planned)
        return counts

    def stop(self) -> None:
        """End the process at once and start none again."""
        self._closed = True
        self._give_up()

    def _ask(self, method: str, *arguments):
        """The actor's answer, waited for as long as its process lives and breathes."""
        if self._hopeless:
            raise self._hopeless
        seat, where = self._seat, self._where
        if self._closed or seat is None:
            raise WorkerDied("the worker was closed")
        try:
            answer = getattr(seat, method).remote(*arguments)
            if self._breathes_until(answer, seat):
                return self._ray.get(answer)
            reason = f"gave no sign of life for {SILENT_S:.0f} s"
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            reason = f"was lost ({type(error).__name__})"
        log.warning("Worker %s %s; its slot moves.", where, reason)
        self._give_up()
        raise WorkerDied(f"Ray's {where} {reason}" + (f" in shard {arguments[0]}" if arguments else ""))

    def _breathes_until(self, answer, seat) -> bool:
        """Wait for an answer; False when the process stops breathing before."""
        asked, breath = time.monotonic(), seat.where.remote()
        while not self._ray.wait([answer], timeout=PULSE_S)[0]:
            if self._ray.wait([breath], timeout=0)[0]:
                asked, breath = time.monotonic(), seat.where.remote()
            elif time.monotonic() - asked > SILENT_S:
                return False
        return True

    def _give_up(self) -> None:
        seat, self._seat, self._found, self._where = self._seat, None, None, ""
        if seat is not None and self._ray.is_initialized():
            self._ray.kill(seat)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
