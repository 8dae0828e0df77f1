"""Read every byte of a generated dataset and compare it with what was committed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from engine.errors import DatasetError
from engine.generation.durable import sha256_of
from engine.generation.plan import Plan
from engine.generation.plan_file import load_plan
from engine.generation.records import ShardCounts
from engine.generation.shard_state import RECORDS, BadShard, Shard, read_shard


def verify(out: Path) -> list[str]:
    """Problems of a generated dataset, each naming its file; an empty list means whole and unchanged.

    Generating again with the same settings cures every problem but a damaged plan.
    """
    try:
        plan = load_plan(out)
    except DatasetError as error:
        return [str(error)]
    problems, shards = [], []
    for number in range(plan.shards):
        try:
            shards.append(read_shard(out, plan, number, verify=True))
        except BadShard as reason:
            problems.append(f"shards/{number:05d}: {reason}")
    return problems + list(_merged_problems(out, plan, shards, complete=not problems))


def _merged_problems(out: Path, plan: Plan, shards: list[Shard], complete: bool) -> Iterator[str]:
    try:
        manifest = json.loads((out / "manifest.json").read_bytes())
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
        if sha256_of(out / "annotations.json") != expected["annotations_sha256"]:
            yield "annotations.json has changed (sha256 differs)"
    except OSError as error:
        yield f"annotations.json is not readable ({error})"
    images_sha256, counts = hashlib.sha256(), ShardCounts()
    for shard in shards:
        counts += shard.counts
        for name, recorded in sorted(shard.files.items()):
            if name != RECORDS:
                images_sha256.update(f"{name} {recorded['sha256']}\n".encode("ascii"))
                yield from _image_problems(out / name, shard.folder / name, name, recorded["sha256"])
    if complete and counts.as_dict() != expected["counts"]:
        yield "manifest.json has other counts than the shards"
    if complete and images_sha256.hexdigest() != expected["images_sha256"]:
        yield "manifest.json tells of other images than the shards"


def _image_problems(merged: Path, committed: Path, name: str, sha256: str) -> Iterator[str]:
    try:
        if not os.path.samefile(merged, committed) and sha256_of(merged) != sha256:
            yield f"{name} has changed (sha256 differs)"
    except FileNotFoundError:
        yield f"{name} is missing"
    except OSError as error:
        yield f"{name} is not readable ({error})"
