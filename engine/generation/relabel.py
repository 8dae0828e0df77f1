"""A dataset of pictures that are there already, with other labels: for comparing ways to label."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.data.dataset import Annotation, Dataset, write_dataset
from engine.errors import DatasetError
from engine.generation.labels import LabelRules, sort_out


def refuse_existing(out: Path) -> None:
    """Raises DatasetError where `out` is there already: what it holds may have cost hours."""
    if out.exists():
        raise DatasetError(f"{out} is there already. Give a new folder, or remove it.")


def write_relabelled(
    out: Path, pictures: Dataset, found: Sequence[dict], rules: LabelRules, keep_negatives: bool
) -> dict[str, int]:
    """Write `out`/annotations.json and copies of the pictures, a dataset folder for `de compare --arm`.

    Args:
        found: COCO results (image_id, category_id, bbox XYWH in pixels of the stored picture, score).
        rules: which of them are labels, which ignore regions.

    Returns:
        Numbers of images, boxes, ignored (regions), and of dropped images: those without a box.
    """
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
    kept = [image for image in pictures.images if per_image[image.id] or keep_negatives]
    if not kept:
        raise DatasetError(f"No box was found on any of the {len(pictures.images)} pictures: nothing was written.")
    ids = {image.id for image in kept}
    labels = [a for a in labels if a.image_id in ids]
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for image in kept:
        target = partial / "images" / image.file_name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(pictures.image_path(image), target)
    write_dataset(partial, "annotations", kept, labels, pictures.categories)
    partial.rename(out)
    ignored = sum(a.iscrowd for a in labels)
    dropped = len(pictures.images) - len(kept)
    return {"images": len(kept), "boxes": len(labels) - ignored, "ignored": ignored, "dropped": dropped}
