"""A few items of a plan, drawn for the clock: what the rest will take on this machine."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine.errors import RunFailed
from engine.generation.disk import ImageSize
from engine.generation.plan import Plan
from engine.generation.records import FAILED
from engine.generation.shard import run_shard
from engine.generation.shard_state import Shard, read_shard

if TYPE_CHECKING:
    from engine.generation.draw import Drawer


@dataclass(frozen=True)
class Calibration:
    """What a few items took.

    Attributes:
        items: how many were drawn.
        seconds_per_image: of one worker, with labelling, compression and writing.
        first_seconds: of one image more, drawn before the clock starts: libraries warm up on it.
        kept: share of the items that had a box and were kept.
        size: of the kept images; None where none was kept.
    """

    items: int
    seconds_per_image: float
    first_seconds: float
    kept: float
    size: ImageSize | None


def calibrate(plan: Plan, drawer: Drawer, items: int) -> Calibration:
    """Draw `items` of a plan as a shard of its own, in a temporary folder that is removed.

    Items are taken at even distances from the plan ordered by work, so that their mean is near the plan's.

    Raises:
        RunFailed: an item could not be drawn; says why.
        ModelError, ConfigError: from the drawer.
    """
    chosen = _spread(plan.rows, items)
    first_seconds, _ = _timed(plan, chosen[:1], drawer)
    seconds, shard = _timed(plan, chosen, drawer)
    sizes = [entry["size"] for name, entry in shard.files.items() if name.startswith("images/")]
    kept, boxes = shard.counts.kept, shard.counts.boxes + shard.counts.ignored
    return Calibration(
        items=len(chosen),
        seconds_per_image=seconds / len(chosen),
        first_seconds=first_seconds,
        kept=kept / len(chosen),
        size=ImageSize(sum(sizes) / kept, boxes / kept) if kept else None,
    )


def _spread(rows: np.ndarray, items: int) -> np.ndarray:
    """`items` rows, from the middles of as many equal parts of all rows ordered by denoising work."""
    work = rows["strength"] * (1 + (rows["guidance_scale"] > 1))
    order = np.argsort(work, kind="stable")
    items = min(items, len(rows))
    places = ((np.arange(items) + 0.5) * len(rows) / items).astype(int)
    return np.ascontiguousarray(rows[np.sort(order[places])])


def _timed(plan: Plan, rows: np.ndarray, drawer: Drawer) -> tuple[float, Shard]:
    short = dataclasses.replace(plan, rows=rows.copy(), shard_size=len(rows))
    with tempfile.TemporaryDirectory(prefix="de-plan-") as folder:
        start = time.perf_counter()
        run_shard(Path(folder), 0, drawer, plan=short)
        seconds = time.perf_counter() - start
        shard = read_shard(Path(folder), short, 0)
        failed = [record for record in shard.records() if record["status"] == FAILED]
    if failed:
        reason = f"{failed[0]['reason']}: {failed[0]['error']}"
        raise RunFailed(f"{len(failed)} of {len(rows)} items drawn to calibrate could not be drawn ({reason}).")
    return seconds, shard
