"""What a run would do, before it does it. Nothing is written."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine.config import named_weight
from engine.cores import usable_cores
from engine.data.sources import read_sources
from engine.errors import ConfigError
from engine.generation.calibration import Calibration, calibrate
from engine.generation.disk import check_disk, estimate, free_bytes, needed_bytes, shards_there
from engine.generation.plan import Plan
from engine.generation.plan_file import plan_for, refuse_foreign
from engine.generation.plan_rows import MODES
from engine.generation.run_file import check_out
from engine.generation.source import DrawerSource
from engine.ldm.device import choose_device

if TYPE_CHECKING:
    from engine.data.dataset import Dataset

LEAST_DRAWN = 8  # for the clock
EXAMPLES = 3


def preview(
    source: DrawerSource,
    out: Path,
    images: int | None,
    seed: int,
    workers: int = 1,
    drawn: int | None = None,
    store: str | None = None,
) -> dict:
    """Plan a run as `generate` would, and draw a few of its items for the clock.

    Args:
        source: what would draw; it is loaded.
        out: the folder that the run would write in. Nothing is written there.
        images, seed: as for `generate`.
        workers: worker processes of the run.
        drawn: items to draw for the clock, None for as many as fill the denoiser's calls; 0 leaves the time out and
            estimates sizes from the source pictures.
        store: URL of plan and shards; None for `out` itself. The merged images come into `out` in either case.

    Returns:
        {plan, out, items, sources, sources_in_split, shards, shards_there, shard_size, batch_size, modes, strengths,
        styles, sizes, prompts: {different, examples}, classes: [{name, weight, real_objects, images, objects}],
        disk: {from, jpeg_bytes, boxes, needed_bytes, free_bytes}, time: see `expected_time`, or None}. Objects are
        those of the sources of all items.

    Raises:
        ConfigError: the disk of `out` cannot hold it, or see `make_plan`.
        RunConflict: `out` holds another run or foreign files.
        RunFailed: an item could not be drawn.
        DatasetError, ModelError: bad input.
    """
    if workers < 1:
        raise ConfigError(f"The number of workers must be at least 1, not {workers}.")
    check_out(out, store)
    refuse_foreign(store or out)  # what cannot be used is told before models are loaded for minutes
    start = time.perf_counter()
    drawer = source.load()
    load_seconds = time.perf_counter() - start
    dataset = read_sources(source.data, source.settings.generation.unlabelled)
    plan = plan_for(dataset, store or out, images, seed, source.settings, drawer.identity)
    size = estimate(plan, dataset)
    check_disk(plan, out, size)  # for merged images that come from a store
    if drawn is None:  # calls that are partly padding would make the rest look slower than it is
        drawn = max(LEAST_DRAWN, source.settings.generation.rows_per_call)
    found = calibrate(plan, drawer, drawn) if drawn else None
    if found and found.size:
        size = found.size
        check_disk(plan, out, size)
    device = choose_device(source.settings.ldm.device).type
    return {
        **contents(plan, dataset),
        "out": str(out),
        "shards_there": shards_there(out),
        "disk": {
            "from": "drawn items" if found and found.size else "source pictures",
            "jpeg_bytes": round(size.jpeg_bytes),
            "boxes": round(size.boxes, 2),
            "needed_bytes": needed_bytes(plan, out, size),
            "free_bytes": free_bytes(out),
        },
        "time": found and expected_time(plan, found, workers, load_seconds, device),
    }


def contents(plan: Plan, dataset: Dataset) -> dict:
    """What a plan consists of; see `preview`."""
    rows = plan.rows
    uses = np.bincount(rows["source"], minlength=len(plan.sources)).tolist()
    sizes = Counter()
    for (_, _, width, height), n in zip(plan.sources, uses, strict=True):
        sizes[f"{width} x {height}"] += n
    numbers = np.linspace(1, plan.images, min(EXAMPLES, plan.images)).astype(int).tolist()
    return {
        "plan": plan.digest,
        "items": plan.images,
        "sources": len(plan.sources),
        "sources_in_split": len(dataset.images),
        "shards": plan.shards,
        "shard_size": plan.shard_size,
        "batch_size": plan.batch_size,
        "modes": {name: int((rows["mode"] == i).sum()) for i, name in enumerate(MODES)},
        "strengths": _strengths(rows),
        "styles": dict(zip(plan.styles, np.bincount(rows["style"], minlength=len(plan.styles)).tolist(), strict=True)),
        "sizes": dict(sizes.most_common()),
        "prompts": {
            "different": len(np.unique(rows[["prompt", "style"]])),
            "examples": list(dict.fromkeys(plan.item(number).prompt for number in numbers)),
        },
        "classes": _classes(plan, dataset, uses),
    }


def expected_time(plan: Plan, found: Calibration, workers: int, load_seconds: float, device: str) -> dict:
    """What drawing all of a plan takes.

    Returns:
        {drawn, seconds_per_image, first_seconds, kept} of the calibration; load_seconds; workers; at_once, those that
        have a shard and a GPU or core of their own; device; unit, "GPU" or "core"; hours of such units that images
        take; and wall_seconds: workers load, then shards go to whoever is free, the last one counts whole.
    """
    places = _gpus() if device == "cuda" else 1 if device != "cpu" else usable_cores()
    at_once = min(workers, plan.shards, places)
    rounds = -(-plan.shards // at_once)
    longest = min(rounds * plan.shard_size, plan.images)
    return {
        "drawn": found.items,
        "seconds_per_image": found.seconds_per_image,
        "first_seconds": found.first_seconds,
        "kept": found.kept,
        "load_seconds": load_seconds,
        "workers": workers,
        "at_once": at_once,
        "device": device,
        "unit": "core" if device == "cpu" else "GPU",
        "hours": plan.images * found.seconds_per_image / 3600,
        "wall_seconds": load_seconds + longest * found.seconds_per_image,
    }


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _strengths(rows: np.ndarray) -> dict[str, int]:
    """Number of img2img items by tenths of the encode ratio; tenths without items are left out."""
    img2img = rows["strength"][rows["mode"] == MODES.index("img2img")]
    tenths = np.bincount(np.clip(np.floor(img2img * 10 + 1e-9), 0, 9).astype(int), minlength=10)
    return {f"{i / 10:.1f} to {(i + 1) / 10:.1f}": int(n) for i, n in enumerate(tenths) if n}


def _classes(plan: Plan, dataset: Dataset, uses: list[int]) -> list[dict]:
    weights = dict(named_weight(text) for text in plan.spec["settings"]["generation"]["class_weights"])
    real, images, objects = Counter(), Counter(), Counter()
    for box in dataset.annotations:
        if not box.iscrowd:
            real[box.category_id] += 1
    for (image_id, *_), n in zip(plan.sources, uses, strict=True):
        held = Counter(box.category_id for box in dataset.annotations_of(image_id) if not box.iscrowd)
        for category_id, count in held.items():
            images[category_id] += n
            objects[category_id] += n * count
    return [
        {
            "name": name,
            "weight": weights.get(name, 1.0),
            "real_objects": real[i],
            "images": images[i],
            "objects": objects[i],
        }
        for i, name, _ in plan.categories
    ]
