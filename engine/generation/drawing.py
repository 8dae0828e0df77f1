"""Draw a shard's items into its work folder. An item that fails does not take its batch along."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from engine.errors import DatasetError, UserError
from engine.generation.durable import sync_folder, to_json, write_durably
from engine.generation.labels import LabelRules
from engine.generation.plan import Plan, PlannedItem
from engine.generation.preview_sheet import PreviewSheet
from engine.generation.records import KEPT, ShardCounts, count, drawn_record, failed_record
from engine.generation.shard_state import PREVIEW, RECORDS, VERSION, image_name

if TYPE_CHECKING:
    from engine.generation.draw import Drawer, Drawn

log = logging.getLogger(__name__)


def fill(
    work: Path, plan: Plan, shard: int, drawer: Drawer, progress: Callable[[int], object] | None = None
) -> ShardCounts:
    """Draw a shard's items into the new folder `work`: images, records and, last, shard.json."""
    (work / "images").mkdir(parents=True)
    records, files, sheet = [], {}, PreviewSheet()

    def write(name: str, content: bytes) -> None:
        write_durably(work / name, content)
        files[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    items = plan.items_of(shard)
    for start in range(0, len(items), plan.batch_size):
        batch = items[start : start + plan.batch_size]
        for record, jpeg in _drawn_batch(plan, batch, drawer):
            if record["status"] == KEPT:
                write(image_name(record["item"]), jpeg)
                sheet.add(record, jpeg)
            records.append(record)
        if progress:
            progress(len(batch))
    write(RECORDS, b"".join(to_json(record) + b"\n" for record in records))
    if preview := sheet.jpeg():
        write(PREVIEW, preview)
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
