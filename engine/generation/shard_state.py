"""Whether a shard is done. Done means verified, never "a mark exists"."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import orjson

from engine.generation.plan import Plan, item_file
from engine.generation.record_checks import check_records
from engine.generation.records import ShardCounts, count
from engine.generation.store import BadShard, Files, Store, open_store

VERSION = 1
RECORDS = "records.jsonl"
PREVIEW = "preview.jpg"


@dataclass(frozen=True)
class Shard:
    """A committed shard.

    Attributes:
        name: in words, for messages.
        files: name -> {"size": bytes, "sha256": hex}.
        content: gives the files.
    """

    plan: Plan
    number: int
    name: str
    counts: ShardCounts
    files: dict[str, dict]
    content: Files

    @property
    def images(self) -> dict[str, dict]:
        """The part of `files` that goes into the dataset, in plan order."""
        return {name: self.files[name] for name in sorted(self.files) if name not in (RECORDS, PREVIEW)}

    def records(self) -> Iterator[dict]:
        """The item records, in plan order. Raises BadShard when they are not those committed, or not of its items."""
        try:
            content = self.content.read(RECORDS)
        except FileNotFoundError:
            raise BadShard(f"{RECORDS} is missing") from None
        if hashlib.sha256(content).hexdigest() != self.files[RECORDS]["sha256"]:
            raise BadShard(f"{RECORDS} has changed")
        try:
            records = [orjson.loads(line) for line in content.splitlines()]  # a third of json's time, the same numbers
            check_records(records, self.plan, self.number)
        except ValueError as error:
            raise BadShard(f"{RECORDS} is not of this shard ({error})") from None
        return iter(records)


def image_name(number: int) -> str:
    """An item's image, relative to its shard's folder (and to the merged folder)."""
    return f"images/{item_file(number)}"


def read_shard(out: Path | str | Store, plan: Plan, shard: int, verify: bool = False) -> Shard:
    """A committed shard, after the checks.

    Args:
        out: the folder or URL where plan and shards are.
        verify: read every file and compare its sha256, else only sizes.

    Raises:
        NoShard: there is none.
        BadShard: shard.json is torn or another plan's, counts do not add up, a file is missing or changed.
    """
    store = open_store(out)
    found = _parsed(store, plan, shard)
    _check_files(found, verify)
    if verify and count(found.records()) != found.counts:
        raise BadShard("its counts are not those of its records")
    return found


def read_shards(
    store: Store, plan: Plan, numbers: Iterable[int] | None = None, verify: bool = False
) -> Iterator[tuple[int, Shard | BadShard]]:
    """Every shard of a plan in order, or why it is none; see `read_shard`. A store far away is asked ahead."""
    numbers = range(plan.shards) if numbers is None else numbers

    def look(number: int) -> tuple[int, Shard | BadShard]:
        try:
            return number, read_shard(store, plan, number, verify)
        except BadShard as reason:
            return number, reason

    if not store.ahead:
        yield from map(look, numbers)
        return
    with ThreadPoolExecutor(store.ahead) as threads:
        asked: deque[Future] = deque()
        try:
            for number in numbers:
                asked.append(threads.submit(look, number))
                if len(asked) > store.ahead:
                    yield asked.popleft().result()
            while asked:
                yield asked.popleft().result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def _parsed(store: Store, plan: Plan, shard: int) -> Shard:
    try:
        content = json.loads(store.read_commit(shard))
        version, digest, number = content["version"], content["plan"], content["shard"]
        items, files = content["items"], content["files"]
        counts = ShardCounts.from_dict(content["counts"])
        sizes = [(entry["size"], entry["sha256"]) for entry in files.values()]
    except FileNotFoundError:
        raise BadShard("shard.json is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadShard(f"shard.json is not readable ({type(error).__name__}: {error})") from None
    if version != VERSION:
        raise BadShard(f"shard.json is of version {version!r}, not {VERSION}")
    if digest != plan.digest:
        raise BadShard(f"it was made by plan {digest}, this is plan {plan.digest}")
    numbers = plan.numbers_of(shard)
    if number != shard or items != list(numbers):
        raise BadShard("it holds other items than the plan says")
    if counts.planned != len(numbers) or not counts.adds_up:
        raise BadShard(f"{counts.planned} planned items of {len(numbers)} do not add up")
    if not all(type(size) is int and isinstance(sha256, str) for size, sha256 in sizes):
        raise BadShard("its list of files is not readable")
    # Names are compared with those that the plan allows: no path is ever taken from the file.
    images = set(files) - {RECORDS, PREVIEW}
    if RECORDS not in files or len(images) != counts.kept or images - {image_name(n) for n in numbers}:
        raise BadShard("its list of files does not fit its counts")
    return Shard(plan, shard, f"{store.location}/shards/{shard:05d}", counts, files, store.files(shard, content))


def _check_files(shard: Shard, verify: bool) -> None:
    try:
        sizes = shard.content.sizes()
    except OSError as error:
        raise BadShard(f"its files cannot be listed ({error})") from None
    for name, expected in shard.files.items():
        if name not in sizes:
            raise BadShard(f"{name} is missing")
        if sizes[name] != expected["size"]:
            raise BadShard(f"{name} has {sizes[name]} bytes, not {expected['size']}")
    if not verify:
        return
    try:
        for name, sha256 in shard.content.hashes(list(shard.files)):
            if sha256 != shard.files[name]["sha256"]:
                raise BadShard(f"{name} has changed (sha256 differs)")
    except OSError as error:
        raise BadShard(f"a file is not readable ({error})") from None
