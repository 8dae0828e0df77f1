"""Import: COCO, Pascal VOC or YOLO in, a strict dataset folder out, with a report of all that was changed or left out.

The rules are in import_rules.py and in the three readers. Pictures are copied, not hard-linked: a data version
tool that makes its files read-only would do so to the source's too. They keep their bytes, and with them their EXIF
orientation.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from engine.cores import usable_cores
from engine.data.bounded_json import MAX_JSON_BYTES
from engine.data.dataset import read_dataset, splits_of, write_dataset
from engine.data.files import sync_folder, write_atomically
from engine.data.images import ImageInfo, inspect_image
from engine.data.import_formats import read_source
from engine.data.import_records import Picture, place_pictures, settle_annotations
from engine.data.import_report import CHANGES, REFUSALS, ImportReport, Notes
from engine.data.import_rules import assign_ids, join_repeated, settle_categories, settle_frames, settle_size
from engine.data.import_source import Source, SourceImage
from engine.data.records import Category, ImageRecord
from engine.data.splitting import split_dataset
from engine.errors import DatasetError

REPORT_NAME = "import_report.json"
EXIF_RULES = ("auto", "upright", "stored")
_log = logging.getLogger(__name__)


def import_dataset(
    src: Path | str,
    out: Path | str,
    format: str = "auto",
    *,
    val: float = 0.0,
    test: float = 0.0,
    seed: int = 0,
    exif: str = "auto",
    max_json_bytes: int = MAX_JSON_BYTES,
) -> ImportReport:
    """Turn a source into a dataset folder. The source is only read; `out` appears complete or not at all.

    Args:
        src: a folder, a COCO json, or YOLO's data.yaml.
        out: the new folder; it must not exist, or be empty.
        format: "auto", "coco", "voc" or "yolo".
        val, test: shares of the train images to draw as splits that the source does not have (`split_dataset`).
        seed: for that drawing.
        exif: the frame of boxes on EXIF-turned pictures: "auto" (see import_rules.py), "upright" or "stored".
        max_json_bytes: a larger json is refused before it is read.

    Raises:
        DatasetError: the source cannot be read at all, no picture of it is usable, or `out` is in use.
    """
    src, out = Path(src), Path(out)
    if exif not in EXIF_RULES:
        raise DatasetError(f"exif={exif!r} is no frame rule. Choose one of {', '.join(EXIF_RULES)}.")
    _check_out(src, out)
    notes = Notes()
    source = read_source(src, format, notes, max_json_bytes)
    pictures = _usable_pictures(source, exif, notes)
    if not pictures:
        reasons = "".join(f"\n  - {n.where}: {n.detail}" for n in notes.entries if n.kind == "images_refused")
        raise DatasetError(f"{src} ({source.format}) has no usable picture.{reasons[:2000]}")
    with _appearing(out) as folder:
        _write_splits(folder, source, pictures, notes)
        if val or test:
            drawn = split_dataset(folder, val=val, test=test, seed=seed)
            notes.count("splits_drawn", sum(drawn.values()))
        report = _report(src, out, folder, source, notes)
        content = json.dumps(report.as_dict(), indent=1, sort_keys=True)
        write_atomically(folder / REPORT_NAME, content.encode() + b"\n")
    _log.info("imported %s from %s to %s", source.format, src, out)
    return report


def _check_out(src: Path, out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out} exists and is not empty; an import never overwrites. Name another folder.")
    if src.is_dir() and out.resolve().is_relative_to(src.resolve()):
        raise DatasetError(f"{out} lies inside the source {src}. Name a folder outside it.")


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A working folder that becomes `out` in one step at the end, or vanishes."""
    folder = out.with_name(f".tmp-import-{out.name}-{os.getpid()}")
    try:
        (folder / "images").mkdir(parents=True)
        yield folder
        os.rename(folder, out)
        sync_folder(out.parent)
    except OSError as error:
        raise DatasetError(f"{out} could not be written: {error}. Is there space, and may you write there?") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _usable_pictures(source: Source, exif: str, notes: Notes) -> list[Picture]:
    """Decode every picture; refuse, with a reason, what cannot be used."""
    images = []
    for image in join_repeated(source.images, notes):
        if image.problem or image.file is None:
            notes.add("images_refused", image.where, image.problem or "there is no file")
        else:
            images.append(image)
    decoded = []
    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        outcomes = pool.map(_inspect, images)
        for image, outcome in zip(images, tqdm(outcomes, "decode", len(images), disable=None), strict=True):
            if isinstance(outcome, ImageInfo):
                decoded.append((image, outcome))
            else:
                notes.add("images_refused", image.where, outcome)
    pictures = []
    for (image, info), frame in zip(decoded, settle_frames(decoded, exif, notes), strict=True):
        problem = settle_size(image, info, frame, notes)
        if problem:
            notes.add("images_refused", image.where, problem)
        else:
            pictures.append(Picture(image, info, frame))
    return pictures


def _inspect(image: SourceImage) -> ImageInfo | str:
    try:
        return inspect_image(image.file)
    except DatasetError as problem:
        return str(problem).replace(str(image.file), image.file.name)


def _write_splits(folder: Path, source: Source, pictures: Sequence[Picture], notes: Notes) -> None:
    categories, category_ids = settle_categories(source, notes)
    ids = assign_ids([picture.source.id for picture in pictures])
    changed = sum(p.source.id not in (None, number) for p, number in zip(pictures, ids, strict=True))
    notes.count("image_ids_renumbered", changed)
    names = place_pictures(folder / "images", pictures, notes)
    records = [
        ImageRecord(number, name, picture.info.width, picture.info.height, picture.source.extra)
        for picture, number, name in zip(pictures, ids, names, strict=True)
    ]
    for split in sorted({picture.source.split for picture in pictures}):
        own = [(p, record) for p, record in zip(pictures, records, strict=True) if p.source.split == split]
        annotations = settle_annotations(own, category_ids, source.format, notes)
        write_dataset(folder, split, [record for _, record in own], annotations, categories)


def _report(src: Path, out: Path, folder: Path, source: Source, notes: Notes) -> ImportReport:
    """Counts what was written by reading it back, strictly: an import that cannot be read is no import."""
    datasets = [read_dataset(folder, split) for split in splits_of(folder)]
    categories: Sequence[Category] = datasets[0].categories
    return ImportReport(
        format=source.format,
        source=src,
        out=out,
        images={d.split: len(d.images) for d in datasets},
        boxes={d.split: len(d.annotations) for d in datasets},
        classes=tuple(category.name for category in categories),
        counts=dict(notes.counts),
        changes=tuple(note for note in notes.entries if note.kind in CHANGES),
        refusals=tuple(note for note in notes.entries if note.kind in REFUSALS),
    )
