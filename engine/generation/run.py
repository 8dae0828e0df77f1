"""A whole run: plan, the shards that are not done, merge."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from engine.config import Settings
from engine.errors import RunFailed
from engine.generation.crew import LocalWorker, Worker, drive
from engine.generation.devices import environment_of, gpus_for
from engine.generation.merge import merge
from engine.generation.plan import Plan
from engine.generation.plan_file import load_plan, prepare
from engine.generation.records import ShardCounts
from engine.generation.shard import run_shard
from engine.generation.shard_state import BadShard, NoShard, read_shard
from engine.generation.source import DEFAULT_LOADER, DrawerSource
from engine.generation.verify import verify
from engine.generation.worker_process import WorkerProcess

__all__ = [
    "DrawerSource",
    "WorkerProcess",
    "check_failed_rate",
    "generate",
    "merge",
    "pending_shards",
    "prepare",
    "run_shard",
    "verify",
]
log = logging.getLogger(__name__)


def generate(
    data: Path,
    ldm: str,
    adapter: Path,
    out: Path,
    images: int,
    seed: int,
    settings: Settings,
    workers: int = 1,
    loader: str = DEFAULT_LOADER,
) -> dict:
    """Draw a dataset, or finish one that was begun with the same settings.

    Args:
        data: dataset folder; its train split gives the sources.
        ldm, adapter: what draws and labels.
        out: folder of the generated dataset; see `prepare`.
        images: how many to draw.
        seed: of the run.
        settings: see `GenerationSettings`. Batch size and shard size change neither images nor labels.
        workers: 1 draws in this process, more in so many processes: on a GPU each, or of one thread each.
        loader: `module:function` that makes the drawer.

    Returns:
        The content of manifest.json.

    Raises:
        RunFailed: shards failed (all others are kept), or more items failed than `max_failed_rate` allows; in that case
            the merged dataset is on disk, and the same command draws the shards with failed items again.
        RunConflict: `out` is another run's, or live processes are at work on its shards.
        ConfigError, DatasetError, ModelError: bad input.
    """
    source = DrawerSource(data, ldm, adapter, settings, loader)
    gpus = gpus_for(settings, workers)
    environments = [environment_of(gpu) for gpu in gpus] or [{}] * workers
    with ExitStack() as stack:
        alone = LocalWorker(source, out) if workers == 1 else WorkerProcess(source, out, environments[0])
        first = stack.enter_context(alone)
        plan = prepare(data, out, images, seed, settings, first.identity)
        todo = pending_shards(out, settings.generation.max_failed_rate)
        more = min(workers, len(todo)) - 1
        crew = [first] + [stack.enter_context(WorkerProcess(source, out, environments[1 + n])) for n in range(more)]
        _draw(plan, todo, crew)
    manifest = merge(out)
    check_failed_rate(manifest, settings.generation.max_failed_rate)
    return manifest


def pending_shards(out: Path, max_failed_rate: float = 1.0) -> list[int]:
    """The shards that are still to be drawn. Every byte of the others was read and compared.

    Args:
        out: the run's folder, with its plan.
        max_failed_rate: where more than this share of the planned items failed, the shards that hold failed items are
            pending too, to be run with `retry_failed=True`.

    Raises:
        DatasetError: no plan, or a damaged one.
    """
    plan = load_plan(out)
    pending, with_failed, counts = [], [], ShardCounts()
    for shard in tqdm(range(plan.shards), desc="check shards", unit="shard", leave=False, delay=2):
        try:
            found = read_shard(out, plan, shard, verify=True)
        except NoShard:
            pending.append(shard)
        except BadShard as reason:
            log.warning("Shard %d of %s does not count as done: %s.", shard, out, reason)
            pending.append(shard)
        else:
            counts += found.counts
            if found.counts.failed:
                with_failed.append(shard)
    if counts.failed.total() > max_failed_rate * plan.images:
        pending = sorted([*pending, *with_failed])
    return pending


def check_failed_rate(manifest: dict, max_failed_rate: float) -> None:
    """Let a run fail that lost too many items. Its data stays on disk.

    Raises:
        RunFailed: says how many failed, and why.
    """
    planned, failed = manifest["counts"]["planned"], sum(manifest["counts"]["failed"].values())
    if failed > max_failed_rate * planned:
        examples = "; ".join(f"item {i['item']}: {i['reason']}: {i['error']}" for i in manifest["failed_items"][:3])
        raise RunFailed(
            f"{failed} of {planned} items could not be drawn, more than generation.max_failed_rate={max_failed_rate} "
            f"allows ({examples}). The others are merged and kept. Give the command again to try the failed ones once "
            "more, or allow a larger rate."
        )


def _draw(plan: Plan, todo: list[int], crew: list[Worker]) -> None:
    waiting = sum(len(plan.numbers_of(shard)) for shard in todo)
    with tqdm(total=plan.images, initial=plan.images - waiting, desc="generate", unit="image") as bar:
        drive(crew, todo, bar.update)
