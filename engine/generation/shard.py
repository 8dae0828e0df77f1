"""Draw one shard: all of it is committed by one rename, or nothing is."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from engine.config import digest
from engine.errors import DatasetError, RunConflict, UserError
from engine.generation.durable import remove_folder, sync_folder, to_json, write_durably
from engine.generation.labels import LabelRules
from engine.generation.lock import Busy, lock
from engine.generation.plan import Plan, PlannedItem
from engine.generation.plan_file import load_plan
from engine.generation.records import KEPT, ShardCounts, count, drawn_record, failed_record
from engine.generation.shard_state import RECORDS, VERSION, BadShard, NoShard, image_name, read_shard, shard_folder

if TYPE_CHECKING:
    from engine.generation.draw import Drawer, Drawn

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
        counts = _fill(work, plan, shard, drawer, progress)
        _commit(work, final)
    except BaseException:
        remove_folder(work)
        raise
    return counts


def _fill(work: Path, plan: Plan, shard: int, drawer: Drawer, progress) -> ShardCounts:
    """Write images, records and, last, shard.json."""
    (work / "images").mkdir(parents=True)
    records, files = [], {}

    def write(name: str, content: bytes) -> None:
        write_durably(work / name, content)
        files[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    items = plan.items_of(shard)
    for start in range(0, len(items), plan.batch_size):
        batch = items[start : start + plan.batch_size]
        for record, jpeg in _drawn_batch(plan, batch, drawer):
            if record["status"] == KEPT:
                write(image_name(record["item"]), jpeg)
            records.append(record)
        if progress:
            progress(len(batch))
    write(RECORDS, b"".join(to_json(record) + b"\n" for record in records))
    counts = count(records)
    summary = {
        "version": VERSION,
        "plan": plan.digest,
        "shard": shard,
        "items": [item.item for item in items],
        "counts": counts.as_dict(),
        "files": files,
    }
    sync_folder(work / "images")
    write_durably(work / "shard.json", to_json(summary) + b"\n")
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


def _drawn_batch(plan: Plan, items: Sequence[PlannedItem], drawer: Drawer) -> Iterator[tuple[dict, bytes]]:
    """(record, jpeg) of each item; an item that fails gives a record that says so."""
    settings = plan.spec["settings"]["generation"]
    rules = LabelRules.of(settings, plan.spec["identity"].get("adapter", {}))
    category_ids = frozenset(category[0] for category in plan.categories)
    for item, drawn in zip(items, _draw(drawer, items), strict=True):
        try:
            if isinstance(drawn, Exception):
                raise drawn
            record = drawn_record(item, drawn, rules, category_ids)
            jpeg = _jpeg(drawn.image, settings["jpeg_quality"])
        except Exception as error:
            log.warning("Item %d could not be drawn: %s: %s", item.item, type(error).__name__, error)
            record, jpeg = failed_record(item, error), b""
        yield record, jpeg


def _draw(drawer: Drawer, items: Sequence[PlannedItem]) -> list[Drawn | Exception]:
    """What was drawn, or why not, item by item: a batch that raises is halved until the culprit stands alone."""
    try:
        drawn = list(drawer.draw(items))
        if len(drawn) != len(items):
            raise ValueError(f"the drawer gave {len(drawn)} images for {len(items)} items")
        return drawn
    except Exception as error:
        if isinstance(error, UserError) and not isinstance(error, DatasetError):
            raise  # a matter of the run, not of an item
        if len(items) == 1:
            return [error.with_traceback(None)]  # its frames would keep tensors alive
        log.warning("A batch of %d is halved: %s: %s", len(items), type(error).__name__, error)
    half = len(items) // 2
    return _draw(drawer, items[:half]) + _draw(drawer, items[half:])


def _jpeg(image, quality: int) -> bytes:
    """Bytes of an (H, W, 3) uint8 image; no time, no name, no profile in them."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
