"""Draw one shard: all of it is committed by one rename, or nothing is."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from engine.config import digest
from engine.errors import RunConflict
from engine.generation.drawing import fill
from engine.generation.durable import remove_folder, sync_folder
from engine.generation.lock import Busy, lock
from engine.generation.plan import Plan
from engine.generation.plan_file import load_plan
from engine.generation.records import ShardCounts
from engine.generation.shard_state import BadShard, NoShard, read_shard, shard_folder

if TYPE_CHECKING:
    from engine.generation.draw import Drawer

log = logging.getLogger(__name__)


def run_shard(
    out: Path,
    shard: int,
    drawer: Drawer,
    *,
    plan: Plan | None = None,
    retry_failed: bool = False,
    progress: Callable[[int], object] | None = None,
) -> ShardCounts:
    """Make sure that a shard is done: draw it, unless it is committed and every byte of it is still there.

    An item that cannot be drawn is recorded as failed and the shard commits. An error of the disk, of the model or of
    the settings fails the shard: its work is removed, other shards are not touched.

    Args:
        out: the run's folder, with its plan.
        shard: number from 0.
        plan: the folder's plan where the caller has read it before.
        retry_failed: draw a committed shard again if it has failed items.
        progress: called with a number of items each time that so many are through.

    Raises:
        Busy: another live process owns the shard.
        RunConflict: the drawer is not the one that the run was planned with.
        OSError: the disk is full, for example.
        ModelError, ConfigError: from the drawer.
    """
    plan = plan or load_plan(out)
    if digest(drawer.identity) != digest(plan.spec["identity"]):
        raise RunConflict(
            f"{out} was planned with {plan.spec['identity']}, now {drawer.identity} would draw. "
            "Give the old model and adapter, or another --out folder."
        )
    numbers = plan.numbers_of(shard)
    # Asked before the lock too: who only looks at a finished shard must not look like its owner to others.
    counts = _committed(out, plan, shard, retry_failed)
    if counts is None:
        with _own(out, shard):
            counts = _committed(out, plan, shard, retry_failed, log.warning)
            if counts is None:
                return _draw_and_commit(out, plan, shard, drawer, progress)
    if progress:
        progress(len(numbers))
    return counts


def remove_leftovers(out: Path) -> None:
    """Remove what killed owners of shards left behind; shards in the hands of a live process are not touched."""
    left = (out / "shards").glob(".*-[0-9]*")
    for number in sorted({int(entry.name.split("-")[1]) for entry in left}):
        try:
            with _own(out, number):
                _remove_work(out, number)
        except Busy:
            continue


def _own(out: Path, shard: int):
    return lock(out / "shards" / f".lock-{shard:05d}", f"Shard {shard} of {out}")


def _remove_work(out: Path, shard: int) -> None:
    """Remove unfinished work on a shard; for its owner only."""
    for leftover in (out / "shards").glob(f".tmp-{shard:05d}-*"):
        remove_folder(leftover)


def _committed(out: Path, plan: Plan, shard: int, retry_failed: bool, tell=log.debug) -> ShardCounts | None:
    try:
        counts = read_shard(out, plan, shard, verify=True).counts
    except NoShard:
        return None
    except BadShard as reason:
        tell("Shard %d of %s is drawn again: %s.", shard, out, reason)
        return None
    if retry_failed and counts.failed:
        tell("Shard %d of %s is drawn again: %d of its items failed.", shard, out, counts.failed.total())
        return None
    return counts


def _draw_and_commit(out: Path, plan: Plan, shard: int, drawer: Drawer, progress) -> ShardCounts:
    final = shard_folder(out, shard)
    _remove_work(out, shard)
    work = final.with_name(f".tmp-{shard:05d}-{secrets.token_hex(4)}")
    try:
        counts = fill(work, plan, shard, drawer, progress)
        _commit(work, final)
    except BaseException:
        remove_folder(work)
        raise
    return counts


def _commit(work: Path, final: Path) -> None:
    """Give the finished work its name. A bad older shard of that name makes way only now."""
    sync_folder(work)
    old = work.with_name(work.name + "-old")
    if final.exists():
        os.rename(final, old)
    os.rename(work, final)
    sync_folder(final.parent)
    remove_folder(old)
