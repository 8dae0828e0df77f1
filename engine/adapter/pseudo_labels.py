"""The adapter's labels on real pictures that have none: what semi-supervised training learns from, nothing drawn."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np

from engine.adapter.adapter import build_adapter, frame_of
from engine.adapter.train import text_of
from engine.config import Settings
from engine.data.dataset import Annotation, read_dataset, write_dataset
from engine.data.sources import UNLABELLED, read_sources
from engine.detection.prediction import predict
from engine.errors import DatasetError
from engine.generation.draw import load_drawer
from engine.generation.labels import LabelRules, sort_out


def label_pictures(data: Path, ldm: str | Path, adapter: Path, out: Path, settings: Settings) -> dict[str, int]:
    """Label unlabelled.json of a dataset folder with an adapter, by the same thresholds as generated images, and write
    a dataset folder with annotations.json for `de compare --arm`.

    Returns:
        Numbers of images, boxes, ignore regions, and of images dropped for want of a box.

    Raises:
        DatasetError: nothing is unlabelled, or `out` is there already. ModelError: the adapter does not fit.
    """
    if out.exists():
        raise DatasetError(f"{out} is there already. Give a new folder, or remove it.")
    read_sources(data, unlabelled=True)  # refuses what cannot be a source
    pictures = read_dataset(data, UNLABELLED)
    drawer = load_drawer(data, ldm, adapter, settings)
    card = drawer.adapter.card
    detector = build_adapter(drawer.adapter.reader, drawer.ldm, drawer.adapter.timestep, card["head"]["stem"]).eval()
    frame = frame_of(drawer.ldm, card["resolution"])
    found = predict(detector.detect, pictures, frame, device=drawer.ldm.device, text_of=text_of(pictures, settings))
    rules = LabelRules.of(vars(settings.generation), drawer.identity["adapter"])
    by_image: dict[int, list[dict]] = {image.id: [] for image in pictures.images}
    for result in found:
        by_image[result["image_id"]].append(result)
    labels: list[Annotation] = []
    for image in pictures.images:
        x, y, w, h = np.array([r["bbox"] for r in by_image[image.id]]).reshape(-1, 4).T
        corners = np.stack([x, y, x + w, y + h], axis=1)
        scores, classes = ([r[key] for r in by_image[image.id]] for key in ("score", "category_id"))
        boxes, _ = sort_out(corners, scores, classes, (image.width, image.height), rules)
        for box in boxes:
            x, y, w, h = box["bbox"]
            common = (len(labels) + 1, image.id, box["category_id"], (x, y, w, h), w * h, box["iscrowd"])
            labels.append(Annotation(*common, {"score": box["score"]}))
    per_image = Counter(a.image_id for a in labels if not a.iscrowd)
    kept = [image for image in pictures.images if per_image[image.id] or settings.generation.keep_negatives]
    ids = {image.id for image in kept}
    labels = [a for a in labels if a.image_id in ids]
    (out / "images").mkdir(parents=True)
    for image in kept:
        target = out / "images" / image.file_name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(pictures.image_path(image), target)
    write_dataset(out, "annotations", kept, labels, pictures.categories)
    crowds = sum(a.iscrowd for a in labels)
    return {
        "images": len(kept),
        "boxes": len(labels) - crowds,
        "ignored": crowds,
        "dropped": len(pictures.images) - len(kept),
    }
