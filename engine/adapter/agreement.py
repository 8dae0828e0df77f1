"""Do the adapter's boxes on images that it drew agree with the boxes of the real images they were drawn from?

A proxy, and to be read as one: at a low encode ratio the drawing still shows the source's objects, so a box that
differs is most likely wrong; at a high ratio the drawing shows other objects, and the boxes differ because they should.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from tqdm import tqdm

from engine.data.dataset import Dataset, subset
from engine.evaluation.coco_map import evaluate, match
from engine.generation.draw import AdapterDrawer, Drawn
from engine.generation.labels import LabelRules, sort_out
from engine.generation.plan import Plan, make_plan
from engine.sections import Settings

RATIOS = tuple(k / 10 for k in range(1, 11))
SHOWN = 6  # pictures of a sheet


@dataclass(frozen=True)
class ShownImage:
    """A picture (H, W, 3) uint8 and its boxes {category_id, bbox XYWH in its pixels, iscrowd, score or None}."""

    image: np.ndarray
    boxes: tuple[dict, ...]


@dataclass(frozen=True)
class RatioSheet:
    """The same few sources at one encode ratio; None: the real images with their true boxes."""

    encode_ratio: float | None
    images: tuple[ShownImage, ...]


def measure_ratios(
    drawer: AdapterDrawer,
    real: Mapping[int, Drawn],
    settings: Settings,
    rules: LabelRules,
    images: int,
    seed: int,
) -> tuple[dict, tuple[RatioSheet, ...]]:
    """Draw img2img at each encode ratio with the settings' sampler, label in the same pass, compare with the source.

    Args:
        drawer: on the held-out real images, giving boxes of any score.
        real: by image id, the adapter's boxes on the real images themselves: what agreement starts from.
        rules: how generation makes labels of boxes; F1 and the pictures are of those.
        images: how many sources, at most all; the same ones, with the same noise, at each ratio.

    Returns:
        {images, seed, rule, real: row, ratios: [row]} with row {encode_ratio, map, map50, precision, recall, f1,
        labels, ignored}, None where undefined; and the sheets.
    """
    number = min(images, len(drawer.dataset.images))
    plans = {ratio: _plan(drawer, settings, ratio, number, seed) for ratio in RATIOS}
    order = [source[0] for source in plans[RATIOS[0]].sources]
    chosen = subset(drawer.dataset, order)
    rows, sheets = [], [_true_boxes(chosen, order[:SHOWN])]
    with tqdm(total=number * len(RATIOS), desc="draw at encode ratios", unit="image") as bar:
        for ratio, plan in plans.items():
            drawn = _drawn(drawer, plan, settings.generation.batch_size, bar.update)
            labels = {image_id: _labels(drawing, rules) for image_id, drawing in drawn.items()}
            rows.append({"encode_ratio": ratio, **_agreement(chosen, drawn, labels)})
            shown = [ShownImage(drawn[i].image, tuple(labels[i])) for i in order[:SHOWN]]
            sheets.append(RatioSheet(ratio, tuple(shown)))
    start = {image_id: real[image_id] for image_id in order}
    labels = {image_id: _labels(drawing, rules) for image_id, drawing in start.items()}
    real_row = {"encode_ratio": None, **_agreement(chosen, start, labels)}
    rule = "per_class" if rules.per_class is not None else rules.score_threshold
    return {"images": number, "seed": seed, "rule": rule, "real": real_row, "ratios": rows}, tuple(sheets)


def real_labels(dataset: Dataset, detections: Sequence[Mapping]) -> dict[int, Drawn]:
    """The adapter's boxes on real images (COCO result dicts) as if each image had been drawn, by image id."""
    table: dict[int, list[Mapping]] = {record.id: [] for record in dataset.images}
    for detection in detections:
        table[detection["image_id"]].append(detection)
    return {record.id: _as_drawn(record, table[record.id]) for record in dataset.images}


def _as_drawn(record, found: Sequence[Mapping]) -> Drawn:
    boxes = np.array([d["bbox"] for d in found], dtype=float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    blank = np.broadcast_to(np.zeros(3, dtype=np.uint8), (record.height, record.width, 3))
    return Drawn(blank, boxes, np.array([d["score"] for d in found]), np.array([d["category_id"] for d in found], int))


def _plan(drawer: AdapterDrawer, settings: Settings, ratio: float, images: int, seed: int) -> Plan:
    once = {"variants_per_image": 0, "text_to_image": 0.0, "class_weights": (), "size_weights": ()}
    once |= {"balance": "none", "weak_classes": "", "weak_sizes": "", "requests": ""}
    fixed = dataclasses.replace(settings.generation, strength_min=ratio, strength_max=ratio, **once)
    return make_plan(drawer.dataset, images, seed, dataclasses.replace(settings, generation=fixed), drawer.identity)


def _drawn(drawer: AdapterDrawer, plan: Plan, batch_size: int, progress) -> dict[int, Drawn]:
    """By source image id."""
    drawn = {}
    for item, drawing in zip(plan.items, drawer.draw(plan.items, batch_size), strict=True):
        if isinstance(drawing, Exception):
            raise drawing
        drawn[item.source_image_id] = drawing
        progress(1)
    return drawn


def _labels(drawn: Drawn, rules: LabelRules) -> list[dict]:
    height, width = drawn.image.shape[:2]
    return sort_out(drawn.boxes_xyxy, drawn.scores, drawn.category_ids, (width, height), rules)[0]


def _agreement(sources: Dataset, drawn: Mapping[int, Drawn], labels: Mapping[int, Sequence[dict]]) -> dict:
    """AP of all boxes, and precision, recall and F1 at IoU 0.5 of the labels, against the sources' boxes."""
    metrics = evaluate(sources, [row for r in sources.images for row in _all_boxes(r, drawn[r.id])])
    kept = [row for r in sources.images for row in _label_boxes(r, drawn[r.id], labels[r.id])]
    matched = list(match(sources, kept).values())
    right, found = (sum(int(m.hit.sum()) for m in matched), sum(len(m.hit) for m in matched))
    objects = sum(m.objects for m in matched)
    return {
        "map": metrics.map,
        "map50": metrics.map50,
        "precision": right / found if found else None,
        "recall": right / objects if objects else None,
        "f1": 2 * right / (found + objects) if found + objects else None,
        "labels": sum(not box["iscrowd"] for boxes in labels.values() for box in boxes),
        "ignored": sum(box["iscrowd"] for boxes in labels.values() for box in boxes),
    }


def _all_boxes(record, drawn: Drawn) -> list[dict]:
    """COCO result dicts in pixels of the source."""
    results = []
    for corners, score, category_id in zip(drawn.boxes_xyxy, drawn.scores, drawn.category_ids, strict=True):
        x0, y0, x1, y1 = (float(v) for v in corners)
        if all(map(math.isfinite, (x0, y0, x1, y1, score))) and x1 > x0 and y1 > y0:
            results.append(_result(record, drawn, [x0, y0, x1 - x0, y1 - y0], int(category_id), float(score)))
    return results


def _label_boxes(record, drawn: Drawn, boxes: Sequence[dict]) -> list[dict]:
    labels = [box for box in boxes if not box["iscrowd"]]
    return [_result(record, drawn, box["bbox"], box["category_id"], box["score"]) for box in labels]


def _result(record, drawn: Drawn, bbox: Sequence[float], category_id: int, score: float) -> dict:
    height, width = drawn.image.shape[:2]
    scale = (record.width / width, record.height / height) * 2
    box = [value * factor for value, factor in zip(bbox, scale, strict=True)]
    return {"image_id": record.id, "category_id": category_id, "bbox": box, "score": score}


def _true_boxes(sources: Dataset, image_ids: Sequence[int]) -> RatioSheet:
    records = {record.id: record for record in sources.images}
    shown = []
    for image_id in image_ids:
        picture: Image.Image = sources.load(records[image_id])
        boxes = [
            {"category_id": a.category_id, "bbox": list(a.bbox_xywh), "iscrowd": a.iscrowd, "score": None}
            for a in sources.annotations_of(image_id)
        ]
        shown.append(ShownImage(np.asarray(picture), tuple(boxes)))
    return RatioSheet(None, tuple(shown))
