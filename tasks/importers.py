"""Datasets in formats that FiftyOne reads and engine.data does not, turned into a dataset folder.

FiftyOne only translates: it checks nothing. What it read goes through the engine's own strict import afterwards.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from engine.data.convert import REPORT_NAME, import_dataset
from engine.data.files import Containment, write_atomically
from engine.data.import_report import ImportReport
from engine.errors import DatasetError
from tasks.fiftyone_connection import connected_fiftyone

log = logging.getLogger(__name__)

# format -> class in fiftyone.types, as FiftyOne lays it out in a folder; all of them are read offline
FORMATS = {
    "kitti": "KITTIDetectionDataset",
    "cvat": "CVATImageDataset",
    "bdd": "BDDDataset",
    "openlabel": "OpenLABELImageDataset",
    "fiftyone": "FiftyOneDataset",
    "fiftyone-detections": "FiftyOneImageDetectionDataset",
}
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def import_with_fiftyone(src: Path, out: Path, format: str) -> ImportReport:
    """Import what FiftyOne can read. A source with subfolders train, val, test has these splits, else all is train.

    Boxes are taken over; polygons, points and whole-image labels are not, with a warning.

    Args:
        src: folder in the layout that FiftyOne expects of the format.
        out: dataset folder to make; new or empty.
        format: a key of FORMATS.

    Raises:
        DatasetError: unknown format, unreadable source, pictures outside of it, no boxes, or what engine.data refuses.
        RunFailed: FiftyOne cannot start.
    """
    src, out = Path(src), Path(out)
    if format not in FORMATS:
        raise DatasetError(f"Format {format!r} is not known. Through FiftyOne: {', '.join(FORMATS)}.")
    if not src.is_dir():
        raise DatasetError(f"{src} is no folder. Give the folder that holds the {format} dataset.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out} exists and is not empty; an import never overwrites. Name another folder.")
    out.parent.mkdir(parents=True, exist_ok=True)
    if format == "cvat":
        log.warning("FiftyOne rounds the corners of CVAT's boxes to whole pixels. CVAT's COCO export keeps them exact.")
    with tempfile.TemporaryDirectory(prefix=".tmp-import-", dir=out.parent) as folder:
        staging = Path(folder)
        with connected_fiftyone() as fiftyone:
            class_ids: dict[str, int] = {}  # the same in every split
            splits = {s: _translate(fiftyone, part, s, format, staging, class_ids) for s, part in _parts(src)}
        categories = [{"id": number, "name": label} for label, number in class_ids.items()]
        for split, document in splits.items():
            content = json.dumps(document | {"categories": categories})
            (staging / f"{split}.json").write_text(content, encoding="utf-8")
        report = replace(import_dataset(staging, out, "coco"), format=format, source=src)
    write_atomically(out / REPORT_NAME, json.dumps(report.as_dict(), indent=1, sort_keys=True).encode() + b"\n")
    return report


def _parts(src: Path) -> list[tuple[str, Path]]:
    """(split, its folder)."""
    found = [(_SPLITS[d.name.lower()], d) for d in sorted(src.iterdir()) if d.is_dir() and d.name.lower() in _SPLITS]
    return found or [("train", src)]


def _translate(fiftyone, src: Path, split: str, format: str, staging: Path, class_ids: dict[str, int]) -> dict:
    """Read one folder with FiftyOne: COCO's images and annotations. Copies pictures to staging/images/<split>/."""
    name = f"import-{uuid4().hex}"  # a temporary one, never persistent
    try:
        dataset = fiftyone.Dataset.from_dir(
            dataset_dir=str(src), dataset_type=getattr(fiftyone.types, FORMATS[format]), name=name, progress=False
        )
        dataset.compute_metadata(num_workers=1, progress=False)
        return _to_coco(fiftyone, dataset, src, split, staging / "images", class_ids)
    except DatasetError:
        raise
    except Exception as error:  # its importers raise whatever their parsers meet
        raise DatasetError(
            f"{src}: FiftyOne could not read this as {format} ({type(error).__name__}: {error}). "
            "Check the format and that the folder is laid out as FiftyOne's documentation of it says."
        ) from error
    finally:
        if fiftyone.dataset_exists(name):
            fiftyone.delete_dataset(name)


def _to_coco(fiftyone, dataset, src: Path, split: str, images_folder: Path, class_ids: dict[str, int]) -> dict:
    field = _detection_field(fiftyone, dataset, src)
    root = src.resolve()
    containment = Containment(root)
    images: list[dict] = []
    annotations: list[dict] = []
    for image_id, sample in enumerate(dataset.iter_samples(), start=1):
        path = Path(sample.filepath)
        problem = containment.problem(path)
        if problem:
            raise DatasetError(f"{src}: picture {path} cannot be used: {problem}.")
        relative = Path(split) / os.path.relpath(os.path.realpath(path), root)
        (images_folder / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, images_folder / relative)
        width, height = (sample.metadata.width, sample.metadata.height) if sample.metadata else (None, None)
        images.append({"id": image_id, "file_name": relative.as_posix(), "width": width, "height": height})
        for label, box in _boxes(sample[field], width, height):
            category = class_ids.setdefault(label, len(class_ids) + 1)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image_id, "category_id": category, "bbox": box, "iscrowd": 0}
            )
    return {"images": images, "annotations": annotations}


def _detection_field(fiftyone, dataset, src: Path) -> str:
    """The field that holds boxes; other labels are named in a warning."""
    labels = dataset.get_field_schema(embedded_doc_type=fiftyone.Label)
    found = [name for name, field in labels.items() if issubclass(field.document_type, fiftyone.Detections)]
    if not found:
        raise DatasetError(f"{src} holds no boxes: FiftyOne found {', '.join(labels) or 'no labels'} in it.")
    ignored = [name for name in labels if name != found[0]]
    if ignored:
        log.warning("%s: taken over are the boxes in '%s'; left out: %s", src, found[0], ", ".join(ignored))
    return found[0]


def _boxes(labels, width: int | None, height: int | None) -> Iterator[tuple[str, list[float]]]:
    """(class, XYWH in pixels) of each box; none for a picture whose size FiftyOne could not tell."""
    if labels is None or width is None:
        return
    for detection in labels.detections:
        x, y, box_width, box_height = detection.bounding_box
        yield detection.label, [x * width, y * height, box_width * width, box_height * height]
