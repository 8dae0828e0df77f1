"""Which format a source has, and who reads it."""

from __future__ import annotations

import mmap
from pathlib import Path

from engine.data.files import Containment
from engine.data.formats_coco import find_coco, read_coco
from engine.data.formats_voc import find_voc, read_voc
from engine.data.formats_yolo import find_yolo, read_yolo
from engine.data.import_report import Notes
from engine.data.import_source import Source
from engine.errors import DatasetError

READERS = {"coco": read_coco, "voc": read_voc, "yolo": read_yolo}


def read_source(src: Path, format: str, notes: Notes, max_json_bytes: int) -> Source:
    """Read a source as it is; format "auto" looks what it is.

    Raises:
        DatasetError: no such source, unknown format, nothing that looks like a dataset, or more than one thing.
    """
    if format != "auto" and format not in READERS:
        raise DatasetError(f"Format {format!r} is not read here. Formats: auto, {', '.join(READERS)}.")
    if not src.exists():
        raise DatasetError(f"There is no source {src}. Check the path.")
    if src.is_file() and src.suffix.lower() not in (".json", ".yaml", ".yml"):
        raise DatasetError(f"{src} is no folder, no json and no yaml. Unpack an archive first, then name its folder.")
    return READERS[detect_format(src) if format == "auto" else format](src, notes, max_json_bytes)


def detect_format(src: Path) -> str:
    """The format of a source. COCO goes first, since it says the most.

    Raises:
        DatasetError: no format fits, or both VOC and YOLO do.
    """
    if any(_looks_like_coco(path) for path in find_coco(src)):
        return "coco"
    found = [name for name, find in (("voc", find_voc), ("yolo", find_yolo)) if find(src)]
    if len(found) == 1:
        return found[0]
    if found:
        raise DatasetError(f"{src} has files of {' and '.join(found)}. Say which to read with --format.")
    raise DatasetError(
        f"{src} looks like no dataset: no COCO json (in it, in annotations/ or in a split's folder), no xml of "
        "Pascal VOC, no data.yaml or classes.txt of YOLO. Name the folder that has them, or say --format."
    )


def _looks_like_coco(path: Path) -> bool:
    if Containment(path.parent).problem(path) or path.stat().st_size == 0:
        return False
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b'"images"') >= 0 and content.find(b'"annotations"') >= 0
