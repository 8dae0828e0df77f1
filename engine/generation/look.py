"""Which shards of a run are done, and which are still to be drawn."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from engine.generation.plan import Plan
from engine.generation.plan_file import load_plan
from engine.generation.records import ShardCounts
from engine.generation.shard_state import read_shard, read_shards
from engine.generation.store import BadShard, NoShard, Store, open_store

log = logging.getLogger(__name__)
MAX_LISTED = 20


@dataclass
class Found:
    """Which shards of a run are done.

    Attributes:
        planned: shards of the plan.
        done: number of shards that count as done.
        missing: shards that nobody has committed.
        bad: why a committed shard does not count, by its number.
        with_failed: shards that are done but for items that failed.
        counts: of the shards that are done.
        todo: what is to be drawn, in order.
    """

    planned: int
    done: int = 0
    missing: list[int] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)
    with_failed: list[int] = field(default_factory=list)
    counts: ShardCounts = field(default_factory=ShardCounts)
    todo: list[int] = field(default_factory=list)

    def text(self, location: Path | str) -> str:
        """What was found, in words, with the first reasons."""
        parts = [f"{self.done} done", f"{len(self.missing)} missing", f"{len(self.bad)} bad"]
        lines = [f"{location}: {self.planned} shards planned: {', '.join(parts)}."]
        again = self.counts.failed.total()
        if again and set(self.with_failed) & set(self.todo):
            lines.append(f"{again} items failed, more than allowed: their {len(self.with_failed)} shards too.")
        return "\n".join(lines + [f"  shard {number}: {self.bad[number]}" for number in sorted(self.bad)[:MAX_LISTED]])


def look(out: Path | str | Store, max_failed_rate: float = 1.0, verify: bool = False) -> Found:
    """See which shards are done: shard.json is the plan's own, and every file is there in full size.

    Args:
        out: the folder or URL of plan and shards.
        max_failed_rate: where more than this share of the planned items failed, shards with failed items are `todo`.
        verify: read every byte of every shard and compare it.

    Raises:
        DatasetError: no plan, or a damaged one.
    """
    store = open_store(out)
    plan = load_plan(store)
    found = Found(plan.shards)
    shards = read_shards(store, plan, verify=verify)
    for number, shard in tqdm(shards, "check shards", plan.shards, unit="shard", leave=False, delay=2):
        if isinstance(shard, NoShard):
            found.missing.append(number)
        elif isinstance(shard, BadShard):
            log.warning("Shard %d of %s does not count as done: %s.", number, store.location, shard)
            found.bad[number] = str(shard)
        else:
            found.done += 1
            found.counts += shard.counts
            if shard.counts.failed:
                found.with_failed.append(number)
    again = found.with_failed if found.counts.failed.total() > max_failed_rate * plan.images else []
    found.todo = sorted([*found.missing, *found.bad, *again])
    return found


def pending_shards(out: Path | str | Store, max_failed_rate: float = 1.0) -> list[int]:
    """The shards that are still to be drawn, those with failed items with `retry_failed=True`; see `look`."""
    return look(out, max_failed_rate).todo


def withdraw(out: Path | str | Store, plan: Plan, bad: dict[int, str]) -> None:
    """Take back the commits of bad shards whose damage only shows when every byte is read, so that all see it."""
    store = open_store(out)
    for shard in bad:
        with store.own(shard):
            try:
                read_shard(store, plan, shard, verify=True)
            except NoShard:
                continue
            except BadShard:
                store.withdraw(shard)
