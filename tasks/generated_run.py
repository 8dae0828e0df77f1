"""How far a generated dataset is, read from its files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from engine.curation.decisions import decisions_about
from engine.curation.edits import read_edits
from engine.data.parts import image_ids
from engine.errors import DatasetError
from engine.generation.plan_file import load_plan
from engine.generation.records import ShardCounts
from engine.generation.run_file import store_of
from engine.generation.shard_state import Shard, read_shards
from engine.generation.store import is_remote, open_store


@dataclass(frozen=True)
class GeneratedRun:
    """A run and what became of it so far.

    Attributes:
        planned: items; kept, dropped, failed: of the shards that are done.
        boxes: labels on the kept images.
        shards, shards_done: None where they are in a store far away, which is not asked.
        merged: whether annotations.json and manifest.json are there.
        accepted: images that training may use, by the review; None where there was none.
        review_problem: why the decisions or edited boxes that lie there are of no use.
    """

    planned: int
    kept: int
    dropped: int
    failed: int
    boxes: int
    shards: int | None
    shards_done: int | None
    merged: bool
    accepted: int | None
    review_problem: str | None = None


def read_generated(folder: Path) -> GeneratedRun:
    """Look at a run's plan, its shards (by name and size, not byte by byte), its manifest and its decisions.

    Raises:
        DatasetError: plan or manifest cannot be read, or the plan is in a store and nothing is merged yet.
    """
    merged = _merged_counts(folder)
    where = store_of(folder)
    if is_remote(where):
        if merged is None:
            raise DatasetError(f"Plan and shards are in {where}, which is not asked here: `de verify {folder}` does.")
        return _run(folder, merged, None, None, True)
    if merged is not None and not (folder / "plan.json").is_file():  # a copy of the merged files alone
        return _run(folder, merged, None, None, True)
    store = open_store(folder)
    plan = load_plan(store)
    whole = [shard for _, shard in read_shards(store, plan) if isinstance(shard, Shard)]
    counts = merged or sum((shard.counts for shard in whole), ShardCounts())
    counts.planned = plan.images
    return _run(folder, counts, plan.shards, len(whole), merged is not None)


def _run(folder: Path, counts: ShardCounts, shards: int | None, done: int | None, merged: bool) -> GeneratedRun:
    accepted, problem = None, None
    if merged:
        try:
            decisions = decisions_about(folder, image_ids(folder, "annotations"))
            accepted = None if decisions is None else len(decisions.accepted)
            read_edits(folder)
        except DatasetError as error:
            problem = str(error)
    return GeneratedRun(
        counts.planned,
        counts.kept,
        counts.dropped.total(),
        counts.failed.total(),
        counts.boxes,
        shards,
        done,
        merged,
        accepted,
        problem,
    )


def _merged_counts(folder: Path) -> ShardCounts | None:
    """The counts of manifest.json; None before the merge."""
    path = folder / "manifest.json"
    if not path.is_file():
        return None
    try:
        return ShardCounts.from_dict(json.loads(path.read_bytes())["counts"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DatasetError(f"{path} is not readable ({type(error).__name__}: {error}).") from None
