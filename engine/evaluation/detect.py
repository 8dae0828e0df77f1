"""`de detect`: what a trained detector finds on pictures, as a dataset folder that every other command reads."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from engine.data.bare_pictures import pictures_to_use
from engine.data.dataset import Annotation, Category, Dataset, ImageRecord, write_dataset
from engine.data.files import link_or_copy
from engine.detection.prediction import predict
from engine.detection.trained import load_detector
from engine.generation.relabel import refuse_existing
from engine.ldm.device import choose_device
from engine.report.pictures import contact_sheet, draw_boxes, label_colours

SHEET, SHOWN = "examples.png", 12


def detect(pictures: Path, detector: Path, out: Path, score: float, device: str = "auto") -> dict:
    """Find objects on every picture below a folder, and write the dataset folder `out`: annotations.json with the boxes
    from `score` on (each with its score), the pictures, and a sheet of examples.

    Returns:
        Numbers of images and boxes, and refused: (picture, why not).

    Raises:
        DatasetError: no picture that can be used, or `out` is there already. ModelError: the detector cannot be used.
    """
    refuse_existing(out)
    built, card = load_detector(detector)
    usable, refused = pictures_to_use(pictures)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    records = []
    for number, (name, info) in enumerate(usable, 1):
        link_or_copy(pictures / name, partial / "images" / name)
        records.append(ImageRecord(number, name, info.width, info.height, {}))
    classes = tuple(Category(c["id"], c["name"]) for c in card["classes"])
    dataset = Dataset(partial, "annotations", tuple(records), classes, ())
    place = choose_device(device)
    built.module.to(place)
    found = [r for r in predict(built.module.detect, dataset, built.frame, device=place) if r["score"] >= score]
    boxes = [
        Annotation(
            i, r["image_id"], r["category_id"], tuple(r["bbox"]), r["bbox"][2] * r["bbox"][3], 0, {"score": r["score"]}
        )
        for i, r in enumerate(found, 1)
    ]
    write_dataset(partial, "annotations", records, boxes, classes)
    _write_sheet(partial / SHEET, dataset, found)
    partial.rename(out)
    return {"images": len(records), "boxes": len(boxes), "refused": refused}


def _write_sheet(path: Path, dataset: Dataset, found: Sequence[dict]) -> None:
    names = {category.id: category.name for category in dataset.categories}
    colours = label_colours(list(names.values()))
    cells, captions = [], []
    for record in dataset.images[:: max(1, len(dataset.images) // SHOWN)][:SHOWN]:
        mine = [r for r in found if r["image_id"] == record.id]
        boxes, labels, scores = (
            [r["bbox"] for r in mine],
            [names[r["category_id"]] for r in mine],
            [r["score"] for r in mine],
        )
        cells.append(draw_boxes(dataset.load(record), boxes, labels, scores, colours=colours))
        captions.append(f"{record.file_name}: {len(mine)} found")
    contact_sheet(cells, columns=4, captions=captions).save(path)
