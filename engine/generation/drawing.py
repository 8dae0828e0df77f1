"""Draw a shard's items into its work folder. What happens to a drawn image happens beside the drawing of the next."""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from engine.data.images import encode_jpeg
from engine.generation.durable import sync_folder, to_json, write_durably
from engine.generation.labels import LabelRules
from engine.generation.plan import Plan, PlannedItem
from engine.generation.preview_sheet import PreviewSheet
from engine.generation.records import KEPT, ShardCounts, count, drawn_record, failed_record
from engine.generation.room import is_out_of_memory
from engine.generation.shard_state import PREVIEW, RECORDS, VERSION, image_name

if TYPE_CHECKING:
    from engine.generation.draw import Drawer, Drawn

log = logging.getLogger(__name__)
WAITING = 32  # drawn images that may wait to be written


def fill(
    work: Path, plan: Plan, shard: int, drawer: Drawer, progress: Callable[[int], object] | None = None
) -> ShardCounts:
    """Draw a shard's items into the new folder `work`: images, records and, last, shard.json.

    Raises:
        RunFailed, UserError: from the drawer.
        OSError: the disk is full, for example.
    """
    (work / "images").mkdir(parents=True)
    items = plan.items_of(shard)
    with ImageWriter(work, plan) as writer:
        for item, drawn in zip(items, drawer.draw(items, plan.batch_size), strict=True):
            writer.take(item, drawn)
            if progress:
                progress(1)
    records, files = writer.records, writer.files
    files[RECORDS] = _write(work / RECORDS, b"".join(to_json(record) + b"\n" for record in records))
    if preview := writer.sheet.jpeg():
        files[PREVIEW] = _write(work / PREVIEW, preview)
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


class ImageWriter:
    """Makes records and files of drawn items in a thread of its own, in the order in which they are given.

    A context manager; at its end all is written. An item of which no record can be made counts as failed; an error of
    the disk is raised by `take` or at the end.

    Attributes:
        records: of all items, in order.
        files: name -> {"size": bytes, "sha256": hex} of what was written.
        sheet: the shard's preview.
        cpu_seconds: that the thread worked.
    """

    def __init__(self, work: Path, plan: Plan):
        settings = plan.spec["settings"]["generation"]
        self._work, self._quality = work, settings["jpeg_quality"]
        self._rules = LabelRules.of(settings, plan.spec["identity"].get("adapter", {}))
        self._category_ids = frozenset(category[0] for category in plan.categories)
        self.records: list[dict] = []
        self.files: dict[str, dict] = {}
        self.sheet = PreviewSheet()
        self.cpu_seconds = 0.0
        self._waiting: queue.Queue[tuple[PlannedItem, Drawn | Exception] | None] = queue.Queue(WAITING)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work_off, name="image-writer", daemon=True)

    def __enter__(self) -> ImageWriter:
        self._thread.start()
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is not None:
            self._error = self._error or InterruptedError("the drawing has ended")  # what waits need not be written
        self._waiting.put(None)
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def take(self, item: PlannedItem, drawn: Drawn | Exception) -> None:
        """Give the next item, drawn or with the reason why not; waits while too many are waiting."""
        if self._error is not None:
            raise self._error
        self._waiting.put((item, drawn))

    def _work_off(self) -> None:
        while (given := self._waiting.get()) is not None:
            if self._error is not None:
                continue  # so that nobody waits for a place in the queue
            try:
                self._write_one(*given)
            except BaseException as error:
                self._error = error
        self.cpu_seconds = time.thread_time()

    def _write_one(self, item: PlannedItem, drawn: Drawn | Exception) -> None:
        jpeg = b""
        try:
            if isinstance(drawn, Exception):
                raise drawn
            record = drawn_record(item, drawn, self._rules, self._category_ids)
            if record["status"] == KEPT:
                jpeg = encode_jpeg(Image.fromarray(drawn.image), self._quality)
        except Exception as error:
            if is_out_of_memory(error):
                raise  # a matter of the machine, not of the item
            log.warning("Item %d could not be drawn: %s: %s", item.item, type(error).__name__, error)
            record = failed_record(item, error)
        if record["status"] == KEPT:
            name = image_name(item.item)
            self.files[name] = _write(self._work / name, jpeg)
            self.sheet.add(record, jpeg)
        self.records.append(record)


def _write(path: Path, content: bytes) -> dict:
    write_durably(path, content)
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
