"""Whether a shard is done. Done means verified, never "a mark exists"."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.generation.durable import sha256_of
from engine.generation.plan import Plan, item_file
from engine.generation.records import ShardCounts, count

log = logging.getLogger(__name__)
VERSION = 1
RECORDS = "records.jsonl"


class BadShard(Exception):
    """A shard is not done; the text says why."""


class NoShard(BadShard):
    """Nothing was committed yet."""


@dataclass(frozen=True)
class Shard:
    """A committed shard.

    Attributes:
        files: name relative to `folder` -> {"size": bytes, "sha256": hex}.
    """

    number: int
    folder: Path
    counts: ShardCounts
    files: dict[str, dict]

    def records(self) -> Iterator[dict]:
        """The item records, in plan order. Raises BadShard when they are not the committed ones."""
        content = (self.folder / RECORDS).read_bytes()
        if hashlib.sha256(content).hexdigest() != self.files[RECORDS]["sha256"]:
            raise BadShard(f"{RECORDS} has changed")
        return map(json.loads, content.splitlines())


def shard_folder(out: Path, shard: int) -> Path:
    """Where a shard is committed."""
    return out / "shards" / f"{shard:05d}"


def image_name(number: int) -> str:
    """An item's image, relative to its shard's folder (and to the merged folder)."""
    return f"images/{item_file(number)}"


def read_shard(out: Path, plan: Plan, shard: int, verify: bool = False) -> Shard:
    """A committed shard, after the checks.

    Args:
        verify: read every file and compare its sha256, else only sizes.

    Raises:
        NoShard: there is none.
        BadShard: shard.json is torn or another plan's, counts do not add up, a file is missing or changed.
    """
    folder = shard_folder(out, shard)
    if not folder.is_dir():
        raise NoShard("not there")
    found = _parsed(folder, plan, shard)
    for name, expected in found.files.items():
        _check_file(folder, name, expected, verify)
    if verify and count(found.records()) != found.counts:
        raise BadShard("its counts are not those of its records")
    return found


def is_done(out: Path, plan: Plan, shard: int, verify: bool = False) -> bool:
    """Whether a shard is committed and passes `read_shard`; logs why not, where something is there."""
    try:
        read_shard(out, plan, shard, verify)
    except NoShard:
        return False
    except BadShard as reason:
        log.warning("Shard %d of %s does not count as done: %s.", shard, out, reason)
        return False
    return True


def _parsed(folder: Path, plan: Plan, shard: int) -> Shard:
    try:
        content = json.loads((folder / "shard.json").read_bytes())
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
    images = set(files) - {RECORDS}
    if RECORDS not in files or len(images) != counts.kept or images - {image_name(n) for n in numbers}:
        raise BadShard("its list of files does not fit its counts")
    return Shard(shard, folder, counts, files)


def _check_file(folder: Path, name: str, expected: dict, verify: bool) -> None:
    try:
        size = (folder / name).stat().st_size
        if size != expected["size"]:
            raise BadShard(f"{name} has {size} bytes, not {expected['size']}")
        if verify and sha256_of(folder / name) != expected["sha256"]:
            raise BadShard(f"{name} has changed (sha256 differs)")
    except FileNotFoundError:
        raise BadShard(f"{name} is missing") from None
    except OSError as error:
        raise BadShard(f"{name} is not readable ({error})") from None
