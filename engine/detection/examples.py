"""A sheet of example predictions: what people labelled beside what the model finds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from engine.data.dataset import Dataset, ImageRecord
from engine.data.images import load_image
from engine.data.pixels import Frame
from engine.detection.prediction import predict
from engine.detection.targets import Detections
from engine.report.pictures import contact_sheet, draw_boxes, label_colours

SHOWN = 0.3  # score from which on a box is drawn


@dataclass(frozen=True)
class ExampleSheet:
    """Draws `count` images of a dataset, in pairs of labels and predictions. See `predict` for the fields."""

    dataset: Dataset
    frame: Frame
    detect: Callable[[Tensor, list[str]], list[Detections]]
    device: torch.device
    text_of: Callable[[ImageRecord], str] | None = None
    count: int = 6

    def __call__(self) -> Image.Image:
        every = max(1, len(self.dataset.images) // self.count)
        records = self.dataset.images[::every][: self.count]
        few = dataclasses.replace(self.dataset, images=records)
        results = predict(self.detect, few, self.frame, device=self.device, text_of=self.text_of)
        found = {record.id: [r for r in results if r["image_id"] == record.id] for record in records}
        cells, captions = [], []
        for record in records:
            image = load_image(self.dataset.image_path(record), (record.width, record.height))
            labels = [a for a in self.dataset.annotations_of(record.id) if not a.iscrowd]
            boxes = [r for r in found[record.id] if r["score"] >= SHOWN]
            cells.append(self._drawn(image, [(a.bbox_xywh, a.category_id) for a in labels]))
            cells.append(
                self._drawn(image, [(r["bbox"], r["category_id"]) for r in boxes], [r["score"] for r in boxes])
            )
            captions += [f"{record.file_name}: {len(labels)} labelled", f"{len(boxes)} found from {SHOWN}"]
        return contact_sheet(cells, columns=6 if len(records) > 4 else 4, captions=captions)

    def _drawn(self, image: Image.Image, boxes: list[tuple], scores: list[float] | None = None) -> Image.Image:
        names = {category.id: category.name for category in self.dataset.categories}
        colours = label_colours(list(names.values()))
        return draw_boxes(image, [b for b, _ in boxes], [names[i] for _, i in boxes], scores, colours=colours)
