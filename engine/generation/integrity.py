"""Whether a generated dataset is still what its manifest says: asked before anyone trains on it or sends it out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from engine.data.records import ImageRecord
from engine.errors import DatasetError
from engine.generation.durable import sha256_of
from engine.generation.verify import verify

MAX_LISTED = 10


def check_unchanged(folder: Path, generated: Iterable[ImageRecord]) -> None:
    """Read every byte of a merged dataset and compare it with its manifest. Disks, copies and caches of versions may
    deliver other bytes than they were given, and say nothing.

    Needs no shards, so a copy of the merged files is enough. A dataset without manifest.json was not made by this
    engine, and there is nothing to compare with.

    Args:
        generated: the images of its annotations.json, in that file's order.

    Raises:
        DatasetError: something was changed or lost; it is named where the shards are there too.
    """
    if not (folder / "manifest.json").exists():
        if _is_run(folder):  # a merge that was cut off
            raise DatasetError(f"{folder} has no manifest.json, it is not finished: `de resume {folder}` does that.")
        return
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        expected = (manifest["annotations_sha256"], manifest["images_sha256"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _changed(folder, [f"manifest.json is not readable ({type(error).__name__}: {error})"]) from None
    if sha256_of(folder / "annotations.json") != expected[0]:
        raise _changed(folder, ["annotations.json is not the one that manifest.json tells of"])
    if images_sha256(folder, generated) != expected[1]:
        named = verify(folder) if (folder / "shards").is_dir() else []
        raise _changed(folder, named or ["images are not those that manifest.json tells of"])


def images_sha256(folder: Path, images: Iterable[ImageRecord]) -> str:
    """sha256 over names and contents of a dataset's pictures, in this order.

    Raises:
        DatasetError: one cannot be read.
    """
    whole, missing = hashlib.sha256(), []
    for image in tqdm(images, desc="check images", unit="image", leave=False, delay=2):
        try:
            whole.update(f"images/{image.file_name} {sha256_of(folder / 'images' / image.file_name)}\n".encode())
        except OSError as error:
            missing.append(f"images/{image.file_name} is not readable ({error.strerror})")
    if missing:
        raise _changed(folder, missing)
    return whole.hexdigest()


def _changed(folder: Path, problems: list[str]) -> DatasetError:
    more = f"; and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
    advice = "Bring the files back, or make it anew in another folder."
    if _is_run(folder):
        advice = f"`de resume {folder} --verify` draws again what is not whole, and keeps the rest; or bring them back."
    return DatasetError(
        f"{folder} is not as it was generated ({'; '.join(problems[:MAX_LISTED])}{more}). It is not used. {advice}"
    )


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("plan.json", "run.json"))
