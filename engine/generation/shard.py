"""Draw one shard: all of it is committed at once, or nothing is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from engine.config import digest
from engine.errors import RunConflict
from engine.generation.drawing import fill
from engine.generation.plan import Plan
from engine.generation.plan_file import load_plan
from engine.generation.records import ShardCounts
from engine.generation.shard_state import read_shard
from engine.generation.store import BadShard, NoShard, Store, open_store

if TYPE_CHECKING:
    from engine.generation.draw import Drawer

log = logging.getLogger(__name__)


def run_shard(
    out: Path | str | Store,
    shard: int,
    drawer: Drawer,
    *,
    plan: Plan | None = None,
    retry_failed: bool = False,
    progress: Callable[[int], object] | None = None,
) -> ShardCounts:
    """Make sure that a shard is done: draw it, unless it is committed and all its files are there in full size.

    An item that cannot be drawn is recorded as failed and the shard commits. An error of the disk, of the model or of
    the settings fails the shard: its work is removed, other shards are not touched.

    Args:
        out: the folder or URL of the run's plan and shards.
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
    store = open_store(out)
    plan = plan or load_plan(store)
    if digest(drawer.identity) != digest(plan.spec["identity"]):
        raise RunConflict(
            f"{store.location} was planned with {plan.spec['identity']}, now {drawer.identity} would draw. "
            "Give the old model and adapter, or another --out folder."
        )
    numbers = plan.numbers_of(shard)
    # Asked before the lock too: who only looks at a finished shard must not look like its owner to others.
    counts = _committed(store, plan, shard, retry_failed)
    if counts is None:
        with store.own(shard):
            counts = _committed(store, plan, shard, retry_failed, log.warning)
            if counts is None:
                with store.attempt(shard) as work:
                    return fill(work, plan, shard, drawer, progress)
    if progress:
        progress(len(numbers))
    return counts


def _committed(store: Store, plan: Plan, shard: int, retry_failed: bool, tell=log.debug) -> ShardCounts | None:
    try:
        counts = read_shard(store, plan, shard).counts
    except NoShard:
        return None
    except BadShard as reason:
        tell("Shard %d of %s is drawn again: %s.", shard, store.location, reason)
        return None
    if retry_failed and counts.failed:
        tell("Shard %d of %s is drawn again: %d of its items failed.", shard, store.location, counts.failed.total())
        return None
    return counts
