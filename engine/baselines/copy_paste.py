"""Copy-paste: objects cut out of training images and pasted onto others (Ghiasi et al. 2021; Zhao et al. 2023).

Cut by the objects' masks where a dataset has them, else by their boxes. Edges are feathered. A covered object's box
shrinks to what is left of it, and goes when that is less than `VISIBLE`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageFilter
from tqdm import tqdm

from engine.baselines.masks import corners_of, mask_of
from engine.baselines.request import BaselineRequest, Outcome
from engine.data.dataset import Annotation, Dataset, ImageRecord, read_dataset, write_dataset
from engine.data.images import encode_jpeg, load_image
from engine.errors import DatasetError

PASTED = (1, 3)  # objects an image
SCALE = (0.7, 1.4)
VISIBLE = 0.3
LEAST_SIDE = 4  # pixels; smaller cut-outs are no objects to look at


@dataclass(frozen=True)
class CutOut:
    """An object: RGB (h, w, 3) uint8, its mask (h, w) bool, and its class."""

    pixels: np.ndarray
    mask: np.ndarray
    category_id: int


def copy_paste(request: BaselineRequest) -> Outcome:
    """Mix `request.images` pictures of train.json of `request.data`.

    The background of the n-th picture is the n-th training image, over and over; everything else is drawn from the
    seed.

    Raises:
        DatasetError: no object can be cut out, or the data cannot be used.
    """
    train, out, seed = read_dataset(request.data, "train"), request.out, request.seed
    cut_outs = cut_objects(train)
    if not cut_outs:
        where = request.data / "train.json"
        raise DatasetError(f"{where}: no object of at least {LEAST_SIDE} pixels a side to cut out.")
    (out / "images").mkdir(parents=True)
    records: list[ImageRecord] = []
    labels: list[Annotation] = []
    for number in tqdm(range(request.images), desc="copy-paste", mininterval=2):
        rng = np.random.default_rng([seed, number])
        source = train.images[number % len(train.images)]
        picture, boxes = paste_onto(train, source, cut_outs, rng)
        name = f"{number + 1:06d}.jpg"
        (out / "images" / name).write_bytes(encode_jpeg(picture, request.settings.generation.jpeg_quality))
        provenance = {"de": {"item": number + 1, "mode": "copy_paste", "source_image_id": source.id, "seed": seed}}
        records.append(ImageRecord(number + 1, name, source.width, source.height, provenance))
        for category_id, (x, y, w, h), crowd in boxes:
            labels.append(Annotation(len(labels) + 1, number + 1, category_id, (x, y, w, h), w * h, crowd, {}))
    write_dataset(out, "annotations", records, labels, train.categories)
    ignored = sum(a.iscrowd for a in labels)
    return Outcome(len(records), len(labels) - ignored, ignored)


def cut_objects(train: Dataset) -> list[CutOut]:
    """Every object of a dataset that has at least LEAST_SIDE pixels a side, ignore regions apart."""
    found = []
    for record in train.images:
        objects = [a for a in train.annotations_of(record.id) if not a.iscrowd]
        if not objects:
            continue
        pixels = np.asarray(_load(train, record))
        for annotation in objects:
            x0, y0, x1, y1 = corners_of(annotation.bbox_xywh, (record.width, record.height))
            if min(x1 - x0, y1 - y0) < LEAST_SIDE:
                continue
            mask = mask_of(annotation, record)[y0:y1, x0:x1]
            if mask.any():
                found.append(CutOut(pixels[y0:y1, x0:x1].copy(), mask, annotation.category_id))
    return found


def paste_onto(
    train: Dataset, record: ImageRecord, cut_outs: list[CutOut], rng: np.random.Generator
) -> tuple[Image.Image, list[tuple[int, tuple[float, float, float, float], int]]]:
    """A training image, perhaps mirrored, with one to three cut-outs on it, and its boxes (category, XYWH, iscrowd)."""
    canvas = _load(train, record)
    placed = [(a.category_id, mask_of(a, record), a.iscrowd, a.bbox_xywh) for a in train.annotations_of(record.id)]
    if rng.random() < 0.5:
        canvas = canvas.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        width = record.width
        placed = [(c, m[:, ::-1], crowd, (width - x - w, y, w, h)) for c, m, crowd, (x, y, w, h) in placed]
    areas = [mask.sum() for _, mask, _, _ in placed]
    shown = [mask.copy() for _, mask, _, _ in placed]
    for _ in range(rng.integers(PASTED[0], PASTED[1] + 1)):
        cut = cut_outs[rng.integers(len(cut_outs))]
        layer, mask = _placed(cut, record, rng)
        if not mask.any():
            continue
        hard = Image.fromarray((mask * 255).astype(np.uint8))
        soft = hard.filter(ImageFilter.GaussianBlur(0.7))
        # Inside the cut-out only: what lies around it in its layer is empty, and would show as a dark rim.
        canvas.paste(layer, mask=ImageChops.darker(soft, hard))
        shown = [m & ~mask for m in shown]
        placed.append((cut.category_id, mask, 0, None))
        areas.append(mask.sum())
        shown.append(mask)
    boxes = []
    for (category_id, _, crowd, box), mask, area in zip(placed, shown, areas, strict=True):
        left = mask.sum()
        if crowd or (box is not None and left == area):  # untouched: its own box, to the fraction of a pixel
            boxes.append((category_id, tuple(float(v) for v in box), crowd))
        elif left >= VISIBLE * area and left > 0:
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            x, y = float(columns[0]), float(rows[0])
            boxes.append((category_id, (x, y, float(columns[-1] + 1) - x, float(rows[-1] + 1) - y), 0))
    return canvas, boxes


def _placed(cut: CutOut, record: ImageRecord, rng: np.random.Generator) -> tuple[Image.Image, np.ndarray]:
    """A cut-out, resized, perhaps mirrored, somewhere in an empty picture: RGB and mask (H, W)."""
    height, width = cut.mask.shape
    factor = rng.uniform(*SCALE)
    size = (
        int(np.clip(round(width * factor), 1, record.width)),
        int(np.clip(round(height * factor), 1, record.height)),
    )
    image = Image.fromarray(cut.pixels).resize(size, Image.Resampling.LANCZOS)
    mask = Image.fromarray((cut.mask * 255).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        image, mask = (p.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for p in (image, mask))
    corner = (int(rng.integers(record.width - size[0] + 1)), int(rng.integers(record.height - size[1] + 1)))
    layer, whole = Image.new("RGB", (record.width, record.height)), Image.new("L", (record.width, record.height))
    layer.paste(image, corner)
    whole.paste(mask, corner)
    return layer, np.asarray(whole) > 127


def _load(train: Dataset, record: ImageRecord) -> Image.Image:
    return load_image(train.image_path(record), (record.width, record.height)).convert("RGB")
