"""Several generated datasets become one that is trained on: the pool. It holds what review accepted, and only that.

Images keep their order (dataset after dataset, by id) and get ids from 1, so what was in a pool keeps its id when the
next dataset joins. Pictures are hard links where the disk has them; provenance (`de`) and scores stay as they were.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from engine.config import digest
from engine.curation.training_labels import training_labels
from engine.data.dataset import Annotation, Dataset, ImageRecord, read_dataset, write_dataset
from engine.data.files import file_sha256, link_or_copy, sync_folder, write_atomically
from engine.errors import DatasetError
from engine.generation.card_mark import CARD
from engine.generation.contents import MANIFEST, generated_content, read_manifest
from engine.generation.integrity import check_unchanged, images_sha256
from engine.generation.records import ShardCounts

VERSION = 1
_OWN = {"annotations.json", MANIFEST, "images", CARD}
REJECTED = "rejected"  # by review: a reason beside those of the generation


@dataclasses.dataclass(frozen=True)
class _Part:
    """A dataset that joins: its manifest, its accepted images with their boxes as a person left them, and what pins
    both."""

    folder: Path
    manifest: dict
    accepted: Dataset
    pinned: dict


def merge_pool(folders: Sequence[Path], out: Path) -> dict:
    """Make the dataset folder `out` of the accepted images of generated datasets, pools among them.

    `out` appears whole or not at all; the same datasets give the same bytes. A pool of the same datasets and decisions
    that is there already is kept, one of others is replaced.

    Returns:
        The content of manifest.json, by the names that generation uses; `parts` says what was merged.

    Raises:
        DatasetError: a dataset is unfinished, changed since it was made, given twice, or of other classes; none of
            its images was accepted; or `out` holds something that is no pool.
    """
    parts = [_read_part(Path(folder)) for folder in folders]
    _check(parts)
    pinned = [part.pinned for part in parts]
    if out.exists():
        manifest = _pool_manifest(out)
        if manifest["parts"] == pinned and _is_whole(out):
            return manifest
    with _replaced(out) as partial:
        return _write(parts, pinned, partial)


def copy_pool(pool: Path, out: Path) -> dict:
    """Make `out` the same pool, byte for byte. A pool that is there is replaced, if it is as it was made.

    Returns:
        The content of manifest.json.

    Raises:
        DatasetError: `pool` was changed since it was made, or `out` was, or `out` is no pool.
    """
    manifest, images = _pool_manifest(pool), read_dataset(pool, "annotations").images
    check_unchanged(pool, images)
    if out.exists() and any(out.iterdir()):
        there = _pool_manifest(out)
        foreign = sorted({path.name for path in out.iterdir()} - _OWN)
        if foreign or not _is_whole(out):
            what = f"it holds {', '.join(foreign)}" if foreign else "its pictures or boxes are not those that it had"
            raise DatasetError(
                f"{out} was changed by hand ({what}), and would be replaced by {pool}. Move what you want to keep out "
                f"of it, or remove {out}."
            )
        if there == manifest:
            return manifest
    with _replaced(out) as partial:
        for name in ("annotations.json", MANIFEST, *(f"images/{image.file_name}" for image in images)):
            link_or_copy(pool / name, partial / name)
    return manifest


def is_pool(folder: Path) -> bool:
    """Whether a folder is a pool; one whose manifest cannot be read is none."""
    try:
        return "parts" in read_manifest(folder)
    except DatasetError:
        return False


@contextmanager
def _replaced(out: Path) -> Iterator[Path]:
    """Where a pool is made that takes the place of `out` at the end of the block."""
    partial = out.with_name(f".tmp-{out.name}")
    shutil.rmtree(partial, ignore_errors=True)
    yield partial
    if out.exists():  # a kill between these two steps leaves no pool, and the next call makes it again
        shutil.rmtree(out)
    partial.rename(out)
    sync_folder(out.parent)


def _read_part(folder: Path) -> _Part:
    drawn = read_dataset(folder, "annotations")
    if not (folder / MANIFEST).is_file():
        raise DatasetError(f"{folder} has no {MANIFEST}: it is not finished, or was not generated here.")
    check_unchanged(folder, drawn.images)
    return _Part(folder, read_manifest(folder), training_labels(folder, drawn), generated_content(folder))


def _check(parts: Sequence[_Part]) -> None:
    if not parts:
        raise DatasetError("There is nothing to make a pool of: no dataset was given.")
    for number, part in enumerate(parts):
        if part.accepted.categories != parts[0].accepted.categories:
            raise DatasetError(f"{part.folder} has other classes than {parts[0].folder}: they cannot be one pool.")
        if not part.accepted.images:
            raise DatasetError(f"{part.folder}: review accepted no image, so it adds nothing to a pool.")
        same = next((other for other in parts[:number] if other.pinned == part.pinned), None)
        if same is not None:
            raise DatasetError(f"{part.folder} is the same dataset as {same.folder}: it would count twice.")


def _pool_manifest(out: Path) -> dict:
    """Of the pool that is there. Raises DatasetError where it is something else: it may have cost hours."""
    manifest = read_manifest(out) if (out / MANIFEST).is_file() else {}
    if "parts" not in manifest:
        raise DatasetError(f"{out} is there already and is no pool. Give another folder, or remove it.")
    return manifest


def _is_whole(out: Path) -> bool:
    try:
        check_unchanged(out, read_dataset(out, "annotations").images)
    except DatasetError:
        return False
    return True


def _write(parts: Sequence[_Part], pinned: list[dict], folder: Path) -> dict:
    images, annotations = [], []
    for part, old, new in _renumbered(parts):
        link_or_copy(part.accepted.image_path(old), folder / "images" / new.file_name)
        images.append(new)
        for box in part.accepted.annotations_of(old.id):
            annotations.append(dataclasses.replace(box, id=len(annotations) + 1, image_id=new.id))
    categories = parts[0].accepted.categories
    path = write_dataset(folder, "annotations", images, annotations, categories)
    pool = Dataset(folder, "annotations", tuple(images), categories, tuple(annotations))
    latest = parts[-1].manifest
    manifest = {
        "version": VERSION,
        "parts": pinned,
        "plan": digest(pinned),
        # What tells of one run is that of the latest one; every image tells of its own.
        **{name: latest[name] for name in ("seed", "data", "identity", "settings")},
        "images": len(images),
        "counts": _counts(parts, pool).as_dict(),
        "classes": _classes(pool),
        "annotations_sha256": file_sha256(path),
        "images_sha256": images_sha256(folder, sorted(images, key=lambda image: image.id)),
    }
    write_atomically(folder / MANIFEST, (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode("ascii"))
    sync_folder(folder / "images")
    return json.loads(json.dumps(manifest))


def _renumbered(parts: Sequence[_Part]) -> Iterator[tuple[_Part, ImageRecord, ImageRecord]]:
    """(part, image, the image in the pool)."""
    number = 0
    for part in parts:
        for image in sorted(part.accepted.images, key=lambda image: image.id):
            number += 1
            name = f"{number:09d}{PurePosixPath(image.file_name).suffix}"
            yield part, image, dataclasses.replace(image, id=number, file_name=name)


def _counts(parts: Sequence[_Part], pool: Dataset) -> ShardCounts:
    """Of all parts together; what review rejected counts as dropped, so that they add up."""
    counts = sum((ShardCounts.from_dict(part.manifest["counts"]) for part in parts), ShardCounts())
    refused = counts.kept - len(pool.images)
    if refused:
        counts.dropped[REJECTED] += refused
    counts.kept, counts.ignored = len(pool.images), sum(box.iscrowd for box in pool.annotations)
    counts.boxes = len(pool.annotations) - counts.ignored
    return counts


def _classes(pool: Dataset) -> list[dict]:
    boxes: dict[int, list[Annotation]] = {category.id: [] for category in pool.categories}
    for box in pool.annotations:
        boxes[box.category_id].append(box)
    names = {category.id: category.name for category in pool.categories}
    return [{"id": i, "name": names[i], **_tally(boxes[i])} for i in sorted(boxes)]


def _tally(boxes: Sequence[Annotation]) -> dict[str, int]:
    labels = [box for box in boxes if not box.iscrowd]
    return {"boxes": len(labels), "ignored": len(boxes) - len(labels), "images": len({box.image_id for box in labels})}
