"""Writes YOLO: images/SPLIT/, labels/SPLIT/ and data.yaml, as Ultralytics reads it; the lines by hotcoco.

A line is `class x y w h` (centre, fractions of the picture, 6 decimals: within 0.001 px up to 1300 px); the classes
are numbered from 0 by rising category id. An image without an object gets an empty file. Scores are not written: a
sixth number would not be read by trainers. Tried: supervision 0.31.2 (5 decimals, ignore regions become objects, equal
base names refused), globox 2.9.0 (ignore regions become objects), datumaro 1.13.12 (needs older pandas and pillow).
"""

from __future__ import annotations

from pathlib import Path

import yaml

from engine.data.dataset import Dataset
from engine.data.export_names import FlatNames, place
from engine.errors import ConfigError, RunFailed


def write_yolo(work: Path, source, options, report) -> None:
    """Labels in pieces of the dataset; ignore regions are not in them any more."""
    names = FlatNames()
    for split in source.splits:
        pictures, labels = work / "images" / split, work / "labels" / split
        pictures.mkdir(parents=True)
        labels.mkdir(parents=True)
        for part in source.parts(split):
            flat = {}
            for image in part.images:
                flat[image.id] = names.of(image.file_name)
                report.counts["images_renamed"] += flat[image.id] != image.file_name
                place(part.image_path(image), pictures / flat[image.id], options.link)
            _write_labels(labels, part, flat)
    # No "path": Ultralytics then takes the folder of data.yaml, with "." the folder in which it was started.
    content: dict = {split: f"images/{split}" for split in source.splits}
    content["names"] = {number: entry["name"] for number, entry in enumerate(report.classes)}
    (work / "data.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _write_labels(folder: Path, part: Dataset, flat: dict[int, str]) -> None:
    try:
        import hotcoco
    except ImportError:
        raise ConfigError("Exporting YOLO needs hotcoco. Install it (pyproject.toml has the version).") from None
    if not part.images:
        return
    categories = sorted(part.categories, key=lambda category: category.id)
    document = {
        "images": [
            {"id": image.id, "file_name": flat[image.id], "width": image.width, "height": image.height}
            for image in part.images
        ],
        "annotations": [
            {"id": a.id, "image_id": a.image_id, "category_id": a.category_id, "bbox": list(a.bbox_xywh),
             "area": a.area, "iscrowd": 0}
            for a in part.annotations
        ],
        "categories": [{"id": category.id, "name": category.name} for category in categories],
    }  # fmt: skip
    written = hotcoco.COCO(document).to_yolo(str(folder))
    if (written["images"], written["annotations"]) != (len(part.images), len(part.annotations)):
        raise RunFailed(f"hotcoco wrote {written} of {len(part.images)} images, {len(part.annotations)} boxes.")
    (folder / "data.yaml").unlink()  # its own list of classes; ours stands above both folders
