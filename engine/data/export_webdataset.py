"""Writes WebDataset: tar shards SPLIT-000000.tar, ... with two members a sample, the picture and a json.

By tarfile, not by webdataset's ShardWriter, whose shards have their final name while they are half written, hold the
time, and may be empty or have a key twice. Here a shard is written as .tmp and renamed when it is on the disk, the
bytes depend on the dataset alone, and export.json, which lists the shards with their sha256, comes last.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

from engine.data.dataset import Annotation, Dataset, ImageRecord

_SUFFIXES = {".jpeg": ".jpg", ".tif": ".tiff"}


def write_webdataset(work: Path, source, options, report) -> None:
    """Samples by rising image id; the key is the id, so that no name can repeat, hold a dot or lead elsewhere."""
    for split in source.splits:
        shard = None
        try:
            for part in source.parts(split):
                classes = {category.id: category.name for category in part.categories}
                for image in part.images:
                    picture = part.image_path(image).read_bytes()
                    label = _label(image, part.annotations_of(image.id), classes)
                    if shard is None or shard.is_full(len(picture) + len(label), options):
                        _commit(shard, report)
                        shard = _Shard(work, split, sum(done["split"] == split for done in report.shards))
                    shard.add(image, picture, label, part)
            _commit(shard, report)
            shard = None
        finally:
            if shard is not None:
                shard.abandon()


def _commit(shard: _Shard | None, report) -> None:
    if shard is not None:
        report.shards.append(shard.commit())


def _label(image: ImageRecord, annotations: tuple[Annotation, ...], classes: dict[int, str]) -> bytes:
    boxes = [
        {
            **a.extra,
            "id": a.id,
            "category_id": a.category_id,
            "category": classes[a.category_id],
            "bbox": list(a.bbox_xywh),
            "area": a.area,
            "iscrowd": a.iscrowd,
        }
        for a in annotations
    ]
    record = {"id": image.id, "file_name": image.file_name, "width": image.width, "height": image.height}
    content = {**image.extra, **record, "annotations": boxes}
    return json.dumps(content, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()


class _Shard:
    """A tar that is being written."""

    def __init__(self, work: Path, split: str, number: int):
        self._final = work / f"{split}-{number:06d}.tar"
        self._path = self._final.with_name(f".tmp-{self._final.name}")
        self._split, self.samples, self._boxes, self._bytes = split, 0, 0, 0
        self._file = open(self._path, "w+b")
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)

    def is_full(self, more: int, options) -> bool:
        """Whether a sample of `more` bytes would be too much. One sample always fits."""
        return self.samples >= options.shard_images or self._bytes + more > options.shard_bytes

    def add(self, image: ImageRecord, picture: bytes, label: bytes, part: Dataset) -> None:
        suffix = Path(image.file_name).suffix.lower()
        if suffix in ("", ".json"):
            suffix = ".bin"
        for end, content in ((_SUFFIXES.get(suffix, suffix), picture), (".json", label)):
            member = tarfile.TarInfo(f"{image.id:09d}{end}")  # no time, no owner
            member.size, member.mode = len(content), 0o644
            self._tar.addfile(member, io.BytesIO(content))
        self.samples += 1
        self._boxes += len(part.annotations_of(image.id))
        self._bytes += len(picture) + len(label)

    def commit(self) -> dict:
        """Close, force to the disk, and give the shard its name."""
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.seek(0)
        sha256 = hashlib.file_digest(self._file, "sha256").hexdigest()
        size = self._file.tell()
        self._file.close()
        os.rename(self._path, self._final)
        return {
            "name": self._final.name,
            "split": self._split,
            "samples": self.samples,
            "boxes": self._boxes,
            "bytes": size,
            "sha256": sha256,
        }

    def abandon(self) -> None:
        """Leave nothing."""
        self._file.close()
        self._path.unlink(missing_ok=True)
