"""How much disk a run takes, asked before anything is drawn."""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine.data.images import encode_jpeg
from engine.errors import ConfigError, DatasetError
from engine.generation import preview_sheet
from engine.generation.plan import Plan

if TYPE_CHECKING:
    from engine.data.dataset import Dataset

SAMPLES = 4  # pictures that are compressed to see how large such a picture is
BLOCK = 4096  # a file takes whole blocks
# Text of an image and of a box: once in its shard, twice in annotations.json while that is being put together.
TEXT_PER_IMAGE, TEXT_PER_BOX = 1000, 300
SHEET_BYTES_PER_PIXEL = 0.2  # of a shard's preview
BLOCKS_PER_SHARD = 2  # its json files fill half a block too little on average, and so does the preview
REGIONS_PER_OBJECT = 2  # ignore regions come on top of the labels
UNKNOWN_BYTES_PER_PIXEL = 1.0
_SHARD = re.compile(r"\d{5,}")


@dataclass(frozen=True)
class ImageSize:
    """What an image takes on average: bytes of its jpeg, and how many boxes (labels and ignore regions) it has."""

    jpeg_bytes: float
    boxes: float

    @property
    def bytes_on_disk(self) -> float:
        """With its text. Merged images are hard links to those of the shards: they count once."""
        return BLOCK * math.ceil(self.jpeg_bytes / BLOCK) + TEXT_PER_IMAGE + TEXT_PER_BOX * self.boxes


def estimate(plan: Plan, dataset: Dataset) -> ImageSize:
    """A size without drawing anything: pictures like the sources at their new size, boxes as many as their objects."""
    uses = np.bincount(plan.rows["source"], minlength=len(plan.sources))
    objects = sum(
        len(dataset.annotations_of(source[0])) * n for source, n in zip(plan.sources, uses.tolist(), strict=True)
    )
    pixels = np.array([width * height for _, _, width, height in plan.sources], dtype=float)
    jpeg_bytes = pixels @ uses / plan.images * _bytes_per_pixel(plan, dataset)
    return ImageSize(float(jpeg_bytes), REGIONS_PER_OBJECT * objects / plan.images)


def _bytes_per_pixel(plan: Plan, dataset: Dataset) -> float:
    """From a few source pictures brought to its size and compressed as it will be.

    Pictures that cannot be read are passed over here; drawing from them will fail by itself.
    """
    quality = plan.spec["settings"]["generation"]["jpeg_quality"]
    by_id = {image.id: image for image in dataset.images}
    places = np.unique(np.linspace(0, len(plan.sources) - 1, SAMPLES).astype(int))
    sizes = []
    for image_id, _, width, height in (plan.sources[place] for place in places):
        try:
            picture = dataset.load(by_id[image_id]).resize((width, height))
        except DatasetError:
            continue
        sizes.append(len(encode_jpeg(picture, quality)) / (width * height))
    return float(np.mean(sizes)) if sizes else UNKNOWN_BYTES_PER_PIXEL


def needed_bytes(plan: Plan, out: Path, size: ImageSize) -> int:
    """Bytes that are still to be written."""
    shards = plan.shards - shards_there(out)
    images = max(0, plan.images - shards_there(out) * plan.shard_size)
    sheet = min(plan.shard_size, preview_sheet.IMAGES) * preview_sheet.TILE**2 * SHEET_BYTES_PER_PIXEL
    return int(images * size.bytes_on_disk + max(0, shards) * (sheet + BLOCKS_PER_SHARD * BLOCK))


def shards_there(out: Path) -> int:
    """Number of committed shards, looked at by their names only."""
    folder = out / "shards"
    return sum(1 for entry in folder.iterdir() if _SHARD.fullmatch(entry.name)) if folder.is_dir() else 0


def free_bytes(out: Path) -> int:
    """Free on the disk of a folder that need not be there yet."""
    return shutil.disk_usage(nearest_folder(out)).free


def nearest_folder(out: Path) -> Path:
    """The folder itself, or the first one above it that is there."""
    there = out.absolute()
    while not there.exists():
        there = there.parent
    return there


def check_disk(plan: Plan, out: Path, size: ImageSize) -> None:
    """Refuse a run that its disk cannot hold.

    Raises:
        ConfigError: says how much is needed and how much is free.
    """
    _check(plan.images, needed_bytes(plan, out, size), out)


def check_room(images: int, out: Path) -> None:
    """Refuse, before it is even planned, what could not fit if each image took a single block.

    Raises:
        ConfigError: see `check_disk`.
    """
    _check(images, images * BLOCK, out)


def _check(images: int, needed: int, out: Path) -> None:
    free = free_bytes(out)
    if needed > free:
        raise ConfigError(
            f"{images} images take about {readable_bytes(needed)} in {out}, and {readable_bytes(free)} are "
            "free there. Make room, ask for fewer images, lower generation.jpeg_quality, or give --out on another disk."
        )


def readable_bytes(count: float) -> str:
    """For people: 3 digits and a unit."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
