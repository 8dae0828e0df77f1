"""A whole run: plan, the shards that are not done, merge."""

from __future__ import annotations

import json
import logging
import secrets
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from engine.config import digest
from engine.data.sources import read_sources
from engine.errors import DatasetError, RunConflict, RunFailed
from engine.generation.crew import LocalWorker, Worker, drive
from engine.generation.devices import check_workers, environment_of, gpus_for
from engine.generation.durable import to_json
from engine.generation.look import look, pending_shards, withdraw
from engine.generation.merge import merge
from engine.generation.plan import Plan
from engine.generation.plan_file import differences, load_plan, prepare, refuse_foreign
from engine.generation.run_file import Run, check_out, read_run, write_run
from engine.generation.shard import run_shard
from engine.generation.source import DEFAULT_LOADER, DrawerSource
from engine.generation.store import is_remote, open_store
from engine.generation.verify import verify
from engine.generation.worker_process import WorkerProcess
from engine.sections import Settings

__all__ = [
    "DrawerSource",
    "WorkerProcess",
    "check_failed_rate",
    "generate",
    "look",
    "merge",
    "pending_shards",
    "prepare",
    "resume",
    "run_shard",
    "verify",
]
log = logging.getLogger(__name__)


def generate(
    data: Path,
    ldm: str,
    adapter: Path,
    out: Path,
    images: int | None,
    seed: int,
    settings: Settings,
    workers: int = 1,
    loader: str = DEFAULT_LOADER,
    store: str | None = None,
) -> dict:
    """Draw a dataset, or finish one that was begun with the same settings.

    Args:
        data: dataset folder; its train split gives the sources.
        ldm, adapter: what draws and labels.
        out: folder of the generated dataset; see `prepare`.
        images: how many to draw; where None, `generation.variants_per_image` of each source.
        seed: of the run.
        settings: see `GenerationSettings`. Batch size and shard size change neither images nor labels.
        workers: 1 draws in this process, more in so many processes: on a GPU each, or of one thread each.
        loader: `module:function` that makes the drawer.
        store: URL of plan and shards; None for `out` itself. Several machines may work on one store.

    Returns:
        The content of manifest.json.

    Raises:
        RunFailed: shards failed (all others are kept), or more items failed than `max_failed_rate` allows; in that case
            the merged dataset is on disk, and the same command draws the shards with failed items again.
        RunConflict: `out` is another run's, or live processes are at work on its shards.
        ConfigError, DatasetError, ModelError: bad input.
    """
    check_workers(workers)
    check_out(out, store)
    run = Run(DrawerSource(data, ldm, adapter, settings, loader), store, workers)
    location = run.location(out)
    refuse_foreign(location)  # what cannot be used is told before models are loaded for minutes
    with _Crew(run, location) as crew:
        plan = prepare(data, location, images, seed, settings, crew.first.identity)
        write_run(out, run.source, store, workers)
        todo = pending_shards(location, settings.generation.max_failed_rate)
        crew.draw(plan, todo)
    return _merge(run, out)


def resume(
    out: Path, workers: int | None = None, loader: str = DEFAULT_LOADER, verify: bool = False, tell=log.info
) -> dict:
    """Finish the run that was begun in `out`, from what run.json, plan and shards say.

    Args:
        workers: None for as many as it was begun with.
        verify: read every byte first, and draw again what has changed; else only missing files and other sizes count.
        tell: called with lines of text: what was found, what is done.

    Returns:
        The content of manifest.json.

    Raises:
        DatasetError: no run was begun in `out`, its plan is damaged, or its dataset is not what was planned with.
        RunConflict: the models are others now. RunFailed and the rest: see `generate`.
    """
    run = read_run(out, loader)
    if workers is not None:
        run = Run(run.source, run.store, workers)
    check_workers(run.workers)
    location = run.location(out)
    plan = load_plan(location)
    _check_data(plan, run.source.data)
    found = look(location, run.source.settings.generation.max_failed_rate, verify)
    tell(found.text(location))
    if found.todo:
        if verify:
            withdraw(location, plan, found.bad)
        items = sum(len(plan.numbers_of(shard)) for shard in found.todo)
        tell(f"Drawing {items} items in {len(found.todo)} shards with {run.workers} worker(s), then merging.")
        with _Crew(run, location) as crew:
            _check_identity(plan, crew.first.identity, out)
            crew.draw(plan, found.todo)
    else:
        tell("Nothing is left to draw. Merging.")
    return _merge(run, out)


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


class _Crew:
    """The workers of a run: the first one at once, the others when it is known how much there is to do."""

    def __init__(self, run: Run, location: Path | str):
        self._run, self._location = run, location
        gpus = gpus_for(run.source.settings, run.workers)
        self._environments = [environment_of(gpu) for gpu in gpus] or [{}] * run.workers

    def __enter__(self) -> _Crew:
        self._stack = ExitStack()
        alone = self._run.workers == 1
        first = LocalWorker(self._run.source, self._location) if alone else self._process(0)
        self.first: Worker = self._stack.enter_context(first)
        return self

    def _process(self, number: int) -> WorkerProcess:
        return WorkerProcess(self._run.source, self._location, self._environments[number])

    def __exit__(self, kind, error, trace) -> None:
        self._stack.__exit__(kind, error, trace)
        if kind is not None and not is_remote(self._location):
            try:
                open_store(self._location).remove_leftovers()  # of workers that were ended in the middle
            except OSError as again:  # the first error is the one to tell; the next run removes them
                log.debug("Leftovers in %s could not be removed: %s", self._location, again)

    def draw(self, plan: Plan, todo: list[int]) -> None:
        """Have shards done."""
        if is_remote(self._location) and todo:
            begin = secrets.randbelow(len(todo))  # several machines do not queue up at the same shard
            todo = todo[begin:] + todo[:begin]
        crew = [self.first]
        for number in range(1, min(self._run.workers, len(todo))):
            crew.append(self._stack.enter_context(self._process(number)))
        waiting = sum(len(plan.numbers_of(shard)) for shard in todo)
        with tqdm(total=plan.images, initial=plan.images - waiting, desc="generate", unit="image") as bar:
            drive(crew, todo, bar.update)


def _merge(run: Run, out: Path) -> dict:
    manifest = merge(out, run.store)
    check_failed_rate(manifest, run.source.settings.generation.max_failed_rate)
    return manifest


def _check_data(plan: Plan, data: Path) -> None:
    if not data.is_dir():
        raise DatasetError(
            f"The dataset that this run draws from is not at {data} any more. Bring it back, or give `de generate` "
            "with its new place and the old settings: what is finished is kept."
        )
    now = read_sources(data, plan.spec["settings"]["generation"].get("unlabelled", False)).digest()
    if now != plan.spec["data"]:
        raise DatasetError(
            f"The dataset at {data} has changed since the run was planned: its digest is {now}, the plan's is "
            f"{plan.spec['data']}. Bring the old one back, or begin a new run in another folder. Nothing was changed."
        )


def _check_identity(plan: Plan, identity: dict, out: Path) -> None:
    if digest(identity) != digest(plan.spec["identity"]):
        changed = "; ".join(differences(plan.spec["identity"], json.loads(to_json(identity)))[:10])
        raise RunConflict(
            f"{out} was planned with other models than run.json leads to ({changed}). "
            "Bring the old ones back, or begin a new run in another folder. Nothing was changed."
        )
