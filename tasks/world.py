"""Prefect task: the embedded world as a dataset folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from engine.data.files import write_atomically
from engine.data.sources import UNLABELLED
from engine.errors import DatasetError, RunConflict
from engine.sections import DemoSettings
from tasks.retry import RETRIED

MARK = "world.json"


@task(name="world", cache_policy=NO_CACHE, **RETRIED)
def make_world(out: Path, sizes: DemoSettings, seed: int) -> str:
    """Render train, val and test scenes into `out`, unless they are there. Returns the folder.

    Raises:
        RunConflict: `out` holds a world of another seed or size.
    """
    from engine.data.world_folder import write_world

    out, wanted = Path(out), {"seed": seed, **dataclasses.asdict(sizes)}
    found = _read_mark(out)
    if found is not None and found != wanted:
        raise RunConflict(f"{out} holds a world of {found}, asked for: {wanted}. Choose another --out, or delete it.")
    if found is None:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / MARK, (json.dumps(wanted, indent=1) + "\n").encode())
    if not _is_complete(out, sizes):
        counts = (sizes.train_images, sizes.val_images, sizes.test_images)
        write_world(out, *counts, seed, unlabelled=sizes.unlabelled_images)
    return str(out)


def _read_mark(out: Path) -> dict | None:
    try:
        return json.loads((out / MARK).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunConflict(f"{out / MARK} is not readable ({error}). Delete {out} and run again.") from None


def _is_complete(out: Path, sizes: DemoSettings) -> bool:
    """Is every split there with so many images, each of them a file?"""
    from engine.data.dataset import read_dataset

    wanted = {"train": sizes.train_images, "val": sizes.val_images, "test": sizes.test_images}
    if sizes.unlabelled_images:
        wanted[UNLABELLED] = sizes.unlabelled_images
    try:
        return all(len(read_dataset(out, split).images) == count for split, count in wanted.items())
    except DatasetError:
        return False
