"""Writes COCO: images/ with the dataset's own names, annotations/instances_SPLIT.json with all that the dataset says.

No library: globox 2.9.0 sets every iscrowd to 0 and counts ids from 0, supervision 0.31.2 refuses equal base names,
renumbers the classes and writes the date. The dataset is COCO already; only records are left out.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from engine.data.dataset import to_coco
from engine.data.export_names import place


def write_coco(work: Path, source, options, report) -> None:
    """One json a split, in pieces: annotations wait in an unnamed file until all images are through."""
    (work / "annotations").mkdir()
    for split in source.splits:
        path = work / "annotations" / f"instances_{split}.json"
        with open(path, "wb") as file, tempfile.TemporaryFile(dir=work) as waiting:
            file.write(b'{"images": [')
            first_image = first_annotation = True
            categories = []
            for part in source.parts(split):
                for image in part.images:
                    target = work / "images" / image.file_name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if not target.exists():  # two splits may share a picture
                        place(part.image_path(image), target, options.link)
                document = to_coco(part)
                categories = document["categories"]
                first_image = _append(file, document["images"], first_image)
                first_annotation = _append(waiting, document["annotations"], first_annotation)
            file.write(b'\n],\n"annotations": [')
            waiting.seek(0)
            for piece in iter(lambda: waiting.read(1 << 20), b""):
                file.write(piece)
            file.write(b'\n],\n"categories": [')
            _append(file, categories, True)
            file.write(b"\n]}\n")
            file.flush()
            os.fsync(file.fileno())


def _append(file: BinaryIO, entries: Iterable[dict], first: bool) -> bool:
    """Write records, one a line; whether the next one is still the first."""
    for entry in entries:
        file.write(b"\n" if first else b",\n")
        file.write(json.dumps(entry, sort_keys=True, allow_nan=False).encode())
        first = False
    return first
