"""Prefect tasks of generation: plan, shards, merge. The files on disk say what is done; Prefect retries and shows.

One slot is one long-lived worker process with its own models. A GPU is one slot.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from prefect import task
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import as_completed
from prefect.task_runners import ThreadPoolTaskRunner

from engine.config import Settings
from engine.errors import ConfigError, RunFailed, UserError
from engine.generation.plan_file import prepare
from engine.generation.run import check_failed_rate, merge, pending_shards
from engine.generation.source import DEFAULT_LOADER, DrawerSource
from engine.generation.worker_process import WorkerProcess
from tasks.retry import RETRIED, is_hopeless

LOADER = DEFAULT_LOADER
MAX_LISTED = 10


@dataclass
class Slots:
    """The worker processes of a run; `draw_shard` borrows a free one."""

    workers: list[WorkerProcess] = field(default_factory=list)
    free: queue.Queue[WorkerProcess] = field(default_factory=queue.Queue)
    fatal: BaseException | None = None  # after it no further shard is begun

    def abandon(self, error: BaseException) -> None:
        """Begin nothing more, and end what runs: threads that wait for a worker come back at once."""
        self.fatal = error
        for worker in self.workers:
            worker.kill()


@dataclass(frozen=True)
class Progress:
    """What the plan says is left: shards still to draw, of so many."""

    digest: str
    shards: int
    pending: tuple[int, ...]


def draw_dataset(
    data: Path, ldm: str, adapter: Path, out: Path, images: int | None, seed: int, settings: Settings, workers: int
) -> dict:
    """Plan, draw what is not on disk yet, merge. Call it inside a flow. Returns the manifest's counts.

    Raises:
        RunFailed: shards failed (all others are kept), or too many items did.
        RunConflict, ConfigError, DatasetError, ModelError: see `engine.generation.run.generate`.
    """
    source = DrawerSource(Path(data), ldm, Path(adapter), settings, LOADER)
    environments = slot_environments(settings, workers)
    with open_slots(source, Path(out), environments) as slots:
        progress = plan_run(slots, source, Path(out), images, seed)
        draw_shards(slots, progress, len(environments))
    manifest = merge_shards(Path(out))
    check_failed_rate(manifest, settings.generation.max_failed_rate)
    return manifest["counts"]


def slot_environments(settings: Settings, workers: int) -> list[dict[str, str]]:
    """The environment of each worker process: its own GPU, or its share of the cores.

    Raises:
        ConfigError: no worker, or more of them than GPUs.
    """
    from engine.ldm.device import choose_device

    if workers < 1:
        raise ConfigError(f"The number of workers must be at least 1, not {workers}.")
    if choose_device(settings.ldm.device).type != "cuda":
        threads = str(max(1, (os.cpu_count() or 1) // workers))
        return [{"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}] * workers
    visible = _visible_gpus()
    if workers > len(visible):
        raise ConfigError(f"{workers} workers want a GPU each, and there are {len(visible)}. Ask for fewer.")
    return [{"CUDA_VISIBLE_DEVICES": name} for name in visible[:workers]]


def _visible_gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named:
        return [name.strip() for name in named.split(",")]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


@contextmanager
def open_slots(source: DrawerSource, out: Path, environments: Sequence[dict[str, str]]) -> Iterator[Slots]:
    """Start one worker process per environment; they end with the block, or with this process however that ends."""
    with ExitStack() as stack:
        slots = Slots()
        for environment in environments:
            slots.workers.append(stack.enter_context(WorkerProcess(source, out, environment)))
            slots.free.put(slots.workers[-1])
        yield slots


@task(name="plan", cache_policy=NO_CACHE, **RETRIED)
def plan_run(slots: Slots, source: DrawerSource, out: Path, images: int | None, seed: int) -> Progress:
    """Make the plan, or take up the one in `out`, and see which shards are not on disk."""
    worker = slots.free.get()
    try:
        identity = worker.identity  # waits until the models are loaded
    finally:
        slots.free.put(worker)
    plan = prepare(source.data, out, images, seed, source.settings, identity)
    pending = pending_shards(out, source.settings.generation.max_failed_rate)
    return Progress(plan.digest, plan.shards, tuple(pending))


@task(name="draw-shard", task_run_name="shard-{shard}", cache_policy=NO_CACHE, **RETRIED)
def draw_shard(slots: Slots, shard: int) -> int:
    """Have one shard drawn and committed by a free worker process. Returns the number of images kept."""
    if slots.fatal is not None:
        raise RunFailed(f"shard {shard} was not begun: {slots.fatal}")
    worker = slots.free.get()
    try:
        return worker.run(shard, retry_failed=True).kept
    except Exception as error:
        if is_hopeless(error):
            slots.fatal = error
        raise
    finally:
        slots.free.put(worker)


def draw_shards(slots: Slots, progress: Progress, at_once: int) -> None:
    """Draw the pending shards, at most `at_once` at a time, and show how far it is.

    Raises:
        UserError: the first one met. RunFailed: lists the shards that failed all their attempts.
    """
    done = progress.shards - len(progress.pending)
    shown = create_progress_artifact(100 * done / progress.shards, "generation-progress", "shards on disk")
    failed: dict[int, Exception] = {}
    with ThreadPoolTaskRunner(max_workers=at_once) as runner:
        try:
            numbers = {runner.submit(draw_shard, {"slots": slots, "shard": n}): n for n in progress.pending}
            for future in as_completed(list(numbers)):
                try:
                    future.result()
                except Exception as error:
                    failed[numbers[future]] = error
                    continue
                done += 1
                update_progress_artifact(shown, 100 * done / progress.shards)
        except BaseException as error:  # Ctrl-C, or the server is gone
            slots.abandon(error)
            raise
    if isinstance(slots.fatal, UserError):
        raise slots.fatal
    if failed:
        listed = "; ".join(f"shard {n}: {failed[n]}" for n in sorted(failed)[:MAX_LISTED])
        raise RunFailed(
            f"{len(failed)} of {progress.shards} shards failed ({listed}). What was finished is kept: put the cause "
            "right and start the same run again."
        )


@task(name="merge", cache_policy=NO_CACHE, **RETRIED)
def merge_shards(out: Path) -> dict:
    """Make the dataset folder from the shards, and show its counts as a table. Returns the manifest."""
    manifest = merge(out)
    counts = manifest["counts"]
    create_table_artifact(
        table=[
            {
                "dataset": str(out),
                "planned": counts["planned"],
                "kept": counts["kept"],
                "dropped": sum(counts["dropped"].values()),
                "failed": sum(counts["failed"].values()),
                "boxes": counts["boxes"],
            }
        ],
        key="generated-dataset",
        description=f"{counts['kept']} generated images in {out}",
    )
    return manifest
