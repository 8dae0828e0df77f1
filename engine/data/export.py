"""Export: a dataset folder, real or generated, to COCO, Pascal VOC, YOLO or WebDataset.

The pictures keep their bytes, and with them their EXIF orientation; boxes are in the frame of the upright picture. Of a
reviewed dataset only the accepted images go out, with the boxes that a person left, as into training. `out` appears
complete or not at all, and the same dataset gives the same bytes.

Memory: a large generated dataset is read in pieces (`dataset_parts`); what grows with it is one number an image where
it was reviewed, and one name an image for VOC and YOLO.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from engine.curation.decisions import FILE as DECISIONS
from engine.curation.decisions import decisions_about
from engine.curation.edits import ImageEdits, apply_edits, read_edits
from engine.data.dataset import Dataset, splits_of, subset
from engine.data.export_coco import write_coco
from engine.data.export_report import ExportReport, SplitCounts
from engine.data.export_voc import write_voc
from engine.data.export_webdataset import write_webdataset
from engine.data.export_yolo import write_yolo
from engine.data.files import sync_folder, write_atomically
from engine.data.parts import dataset_parts, image_ids
from engine.errors import ConfigError, DatasetError

REPORT_NAME = "export.json"
EXPORTS = "exports"  # the one place below a dataset where exports of it may lie
WRITERS = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo, "webdataset": write_webdataset}
IGNORE_REGIONS = ("leave-out", "background")


@dataclass(frozen=True)
class ExportOptions:
    """How to export.

    Attributes:
        rejected: write the images too that the review did not accept.
        ignore_regions: what becomes of them where the format has no word for them (YOLO): "leave-out" leaves out the
            images that hold one, "background" leaves out the regions, so that they count as background.
        link: hard links to the pictures instead of copies.
        shard_images, shard_bytes: a WebDataset shard ends before it has more of either.
    """

    rejected: bool = False
    ignore_regions: str = "leave-out"
    link: bool = False
    shard_images: int = 10_000
    shard_bytes: int = 10**9


def export_dataset(
    folder: Path | str, out: Path | str, format: str, options: ExportOptions | None = None
) -> ExportReport:
    """Write all splits of `folder` to the new folder `out`; a generated dataset becomes the split train.

    Raises:
        DatasetError: the dataset cannot be read, has nothing to export, holds what the format cannot, or `out` is in
            use, or inside `folder` and not below its exports/.
        ConfigError: an unknown format or option.
    """
    folder, out, options = Path(folder), Path(out), options or ExportOptions()
    _check_options(format, options)
    splits = _target_splits(folder)
    _check_out(folder, out)
    report = ExportReport(format)
    with _appearing(out) as work:
        WRITERS[format](work, _Source(folder, splits, options, report), options, report)
        if not any(made.images for made in report.splits.values()):
            raise DatasetError(f"{folder}: no image is left to export. {report.text()}")
        content = json.dumps(report.as_dict(), indent=1, sort_keys=True, ensure_ascii=True)
        write_atomically(work / REPORT_NAME, content.encode() + b"\n")
    return report


class _Source:
    """Gives a writer the parts of each split, without what the review or the options leave out, and counts."""

    def __init__(self, folder: Path, splits: dict[str, str], options: ExportOptions, report: ExportReport):
        self._folder, self._of, self._options, self._report = folder, splits, options, report
        self.splits = tuple(splits)

    def parts(self, split: str) -> Iterator[Dataset]:
        """The split in pieces, by rising image id; at least one."""
        source, made = self._of[split], self._report.splits.setdefault(split, SplitCounts())
        accepted, edits = self._accepted(source), self._edits(source)
        for part in tqdm(dataset_parts(self._folder, source), f"export {split}", unit="k images", disable=None):
            self._note_classes(part)
            part = self._without_rejected(apply_edits(part, edits), accepted)
            if self._report.format == "yolo":
                part = self._without_ignored(part)
            made.images += len(part.images)
            made.ignored += (ignored := sum(a.iscrowd for a in part.annotations))
            made.boxes += len(part.annotations) - ignored
            self._report.counts["negatives"] += len(part.images) - len(
                {a.image_id for a in part.annotations if not a.iscrowd}
            )
            yield part

    def _accepted(self, source: str) -> Set[int] | None:
        if self._options.rejected or source != "annotations" or not (self._folder / DECISIONS).exists():
            return None
        return decisions_about(self._folder, image_ids(self._folder, source)).accepted

    def _edits(self, source: str) -> dict[int, ImageEdits]:
        """The boxes that a person corrected: they go out as training uses them."""
        return read_edits(self._folder) if source == "annotations" else {}

    def _without_rejected(self, part: Dataset, accepted: Set[int] | None) -> Dataset:
        if accepted is None:
            return part
        kept = [image.id for image in part.images if image.id in accepted]
        self._report.counts["images_rejected"] += len(part.images) - len(kept)
        return subset(part, kept)

    def _without_ignored(self, part: Dataset) -> Dataset:
        counts, regions = self._report.counts, [a for a in part.annotations if a.iscrowd]
        if self._options.ignore_regions == "leave-out":
            touched = {region.image_id for region in regions}
            counts["images_left_out"] += len(touched)
            counts["regions_left_out"] += len(regions)
            return subset(part, [image.id for image in part.images if image.id not in touched])
        counts["regions_as_background"] += len(regions)
        kept = tuple(a for a in part.annotations if not a.iscrowd)
        return Dataset(part.folder, part.split, part.images, part.categories, kept)

    def _note_classes(self, part: Dataset) -> None:
        classes = [{"id": c.id, "name": c.name} for c in sorted(part.categories, key=lambda c: c.id)]
        if self._report.classes and self._report.classes != classes:
            raise DatasetError(
                f"{self._folder}: the splits have different classes, {self._report.classes} and {classes}. "
                "Give all splits the same categories."
            )
        self._report.classes = classes


def _check_options(format: str, options: ExportOptions) -> None:
    if format not in WRITERS:
        raise ConfigError(f"Format {format!r} is not written. Formats: {', '.join(WRITERS)}.")
    if options.ignore_regions not in IGNORE_REGIONS:
        raise ConfigError(f"ignore_regions is {options.ignore_regions!r}. Choose {' or '.join(IGNORE_REGIONS)}.")
    if min(options.shard_images, options.shard_bytes) < 1:
        raise ConfigError("A shard must hold at least one image and one byte.")


def _target_splits(folder: Path) -> dict[str, str]:
    """Split to write -> split to read."""
    found = splits_of(folder)
    if not found:
        raise DatasetError(
            f"{folder} is no dataset folder: it has no train.json, val.json, test.json or annotations.json."
        )
    if "annotations" in found and len(found) > 1:
        raise DatasetError(
            f"{folder} has annotations.json beside {found[0]}.json: is it real or generated? Take one away."
        )
    return {"train" if split == "annotations" else split: split for split in found}


def _check_out(folder: Path, out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out} exists and is not empty; an export never overwrites. Name another folder.")
    below = out.resolve().is_relative_to(folder.resolve())
    if below and not out.resolve().is_relative_to(folder.resolve() / EXPORTS):
        raise DatasetError(
            f"{out} lies inside the dataset {folder}. Name a folder outside it, or below its {EXPORTS}/."
        )


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A work folder that becomes `out` in one step at the end, or vanishes."""
    prefix = f".tmp-export-{out.name}-"
    for left in out.parent.glob(f"{prefix}*"):  # of killed exports; a live one's is not touched
        number = left.name.removeprefix(prefix)
        if number.isdigit() and not _is_alive(int(number)):
            shutil.rmtree(left, ignore_errors=True)
    work = out.with_name(f"{prefix}{os.getpid()}")
    try:
        work.mkdir(parents=True)
        yield work
        os.rename(work, out)
        sync_folder(out.parent)
    except OSError as error:
        raise DatasetError(f"{out} could not be written: {error}. Is there space, and may you write there?") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
