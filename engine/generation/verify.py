"""Read every byte of a generated dataset and compare it with what was committed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from engine.errors import DatasetError
from engine.generation.card_mark import card_problem
from engine.generation.durable import sha256_of
from engine.generation.plan import Plan
from engine.generation.plan_file import load_plan
from engine.generation.records import ShardCounts
from engine.generation.shard_state import Shard, read_shards
from engine.generation.store import BadShard, NoShard, Store, open_store


@dataclass
class Findings:
    """What was found in a generated dataset.

    Attributes:
        planned, shards: items and shards of the plan.
        whole: number of shards that are what was committed.
        missing: shards that were not committed yet.
        bad: why, by shard.
        counts: of the whole shards.
        problems: of plan, shards and merged files, each naming its file; empty where all is whole and unchanged.
    """

    planned: int = 0
    shards: int = 0
    whole: int = 0
    missing: list[int] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)
    counts: ShardCounts = field(default_factory=ShardCounts)
    problems: list[str] = field(default_factory=list)


def verify(out: Path, store: Path | str | Store | None = None) -> list[str]:
    """Problems of a generated dataset, each naming its file; an empty list means whole and unchanged."""
    return inspect(out, store).problems


def inspect(out: Path, store: Path | str | Store | None = None) -> Findings:
    """Read every byte of a generated dataset, and say what was found. Holds one shard at a time in memory.

    Args:
        out: folder of the dataset.
        store: folder or URL of plan and shards; None for `out` itself.
    """
    found = Findings()
    store = open_store(out if store is None else store)
    try:
        plan = load_plan(store)
    except DatasetError as error:
        found.problems.append(str(error))
        return found
    found.planned, found.shards = plan.images, plan.shards
    merged = _Merged(out)
    shards = tqdm(read_shards(store, plan, verify=True), "verify", plan.shards, unit="shard", leave=False, delay=2)
    for number, shard in shards:
        if isinstance(shard, BadShard):
            found.problems.append(f"shards/{number:05d}: {shard}")
            if isinstance(shard, NoShard):
                found.missing.append(number)
            else:
                found.bad[number] = str(shard)
            continue
        found.whole += 1
        found.counts += shard.counts
        merged.compare(shard)
    found.problems += merged.problems(plan, found)
    return found


class _Merged:
    """The dataset's files beside what its shards say."""

    def __init__(self, out: Path):
        self.out = out
        self.images_sha256 = hashlib.sha256()
        self.of_images: list[str] = []

    def compare(self, shard: Shard) -> None:
        """Look at the images of one shard, the next in plan order."""
        for name, recorded in shard.images.items():
            self.images_sha256.update(f"{name} {recorded['sha256']}\n".encode("ascii"))
            target = self.out / name
            try:
                if not shard.content.is_placed(name, target) and sha256_of(target) != recorded["sha256"]:
                    self.of_images.append(f"{name} has changed (sha256 differs)")
            except FileNotFoundError:
                self.of_images.append(f"{name} is missing")
            except OSError as error:
                self.of_images.append(f"{name} is not readable ({error})")

    def problems(self, plan: Plan, found: Findings) -> Iterator[str]:
        """What is wrong with the merged files, after all shards were compared."""
        try:
            manifest = json.loads((self.out / "manifest.json").read_bytes())
            expected = {name: manifest[name] for name in ("plan", "counts", "annotations_sha256", "images_sha256")}
        except FileNotFoundError:
            yield "manifest.json is missing: the shards were not merged"
            return
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            yield f"manifest.json is not readable ({type(error).__name__}: {error})"
            return
        if expected["plan"] != plan.digest:
            yield f"manifest.json is of plan {expected['plan']}, the folder's is {plan.digest}"
        try:
            if sha256_of(self.out / "annotations.json") != expected["annotations_sha256"]:
                yield "annotations.json has changed (sha256 differs)"
        except OSError as error:
            yield f"annotations.json is not readable ({error})"
        of_card = card_problem(self.out, expected["annotations_sha256"])
        if of_card:
            yield of_card
        yield from self.of_images
        complete = found.whole == plan.shards
        if complete and found.counts.as_dict() != expected["counts"]:
            yield "manifest.json has other counts than the shards"
        if complete and self.images_sha256.hexdigest() != expected["images_sha256"]:
            yield "manifest.json tells of other images than the shards"
