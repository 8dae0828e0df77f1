"""Prefect tasks of generation: plan, shards, merge. The files on disk say what is done; Prefect retries and shows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from prefect import task
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import as_completed
from prefect.task_runners import ThreadPoolTaskRunner

from engine.errors import RunFailed, UserError
from engine.generation.plan_file import prepare, refuse_foreign
from engine.generation.run import check_failed_rate, merge, pending_shards
from engine.generation.run_file import check_out, write_run
from engine.generation.source import DEFAULT_LOADER, DrawerSource
from engine.sections import Settings
from tasks.ray_slots import open_ray_slots
from tasks.retry import RETRIED, is_hopeless
from tasks.slots import Slots, open_slots

LOADER = DEFAULT_LOADER
MAX_LISTED = 10


@dataclass(frozen=True)
class Progress:
    """What the plan says is left: shards still to draw, of so many."""

    digest: str
    shards: int
    pending: tuple[int, ...]


def draw_dataset(
    data: Path,
    ldm: str,
    adapter: Path,
    out: Path,
    images: int | None,
    seed: int,
    settings: Settings,
    workers: int,
    ray: str | None = None,
    store: str | None = None,
) -> dict:
    """Plan, draw what is not on disk yet, merge. Call it inside a flow. Returns the manifest's counts.

    Args:
        workers: shards at a time.
        ray: the Ray cluster that draws, see `open_ray_slots`; None for worker processes on this machine.
        store: URL of plan and shards; None for `out` itself.

    Raises:
        RunFailed: shards failed (all others are kept), or too many items did.
        RunConflict, ConfigError, DatasetError, ModelError: see `engine.generation.run.generate`.
    """
    source, out = DrawerSource(Path(data), ldm, Path(adapter), settings, LOADER), Path(out)
    check_out(out, store)
    location = store or out.absolute()
    refuse_foreign(location)  # what cannot be used is told before models are loaded for minutes
    if ray:
        slots_opened = open_ray_slots(ray, _everywhere(source), location, workers)
    else:
        slots_opened = open_slots(source, location, workers)
    with slots_opened as slots:
        progress = plan_run(slots, source, location, images, seed)
        write_run(out, source, store, workers)
        draw_shards(slots, progress, workers)
    manifest = merge_shards(out, store)
    check_failed_rate(manifest, settings.generation.max_failed_rate)
    return manifest["counts"]


def _everywhere(source: DrawerSource) -> DrawerSource:
    """The same source in words that do not depend on the working folder."""
    ldm = str(Path(source.ldm).absolute()) if Path(source.ldm).exists() else source.ldm
    return replace(source, data=source.data.absolute(), ldm=ldm, adapter=source.adapter.absolute())


@task(name="plan", cache_policy=NO_CACHE, **RETRIED)
def plan_run(slots: Slots, source: DrawerSource, out: Path | str, images: int | None, seed: int) -> Progress:
    """Make the plan, or take up the one in `out`, and see which shards are not on disk."""
    with slots.borrowed() as worker:
        identity = worker.identity  # waits until the models are loaded
    plan = prepare(source.data, out, images, seed, source.settings, identity)
    pending = pending_shards(out, source.settings.generation.max_failed_rate)
    return Progress(plan.digest, plan.shards, tuple(pending))


@task(name="draw-shard", task_run_name="shard-{shard}", cache_policy=NO_CACHE, **RETRIED)
def draw_shard(slots: Slots, shard: int) -> int:
    """Have one shard drawn and committed by a free worker process. Returns the number of images kept."""
    with slots.borrowed() as worker:
        try:
            return worker.run(shard, retry_failed=True, progress=None).kept
        except Exception as error:
            if is_hopeless(error):
                slots.fatal = error
            raise


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
def merge_shards(out: Path, store: str | None = None) -> dict:
    """Make the dataset folder from the shards, and show its counts as a table. Returns the manifest."""
    manifest = merge(out, store)
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
