"""What a detector finds on a dataset, as COCO results."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engine.data.dataset import Dataset, ImageRecord
from engine.data.pixels import Frame, batches_of
from engine.detection.targets import Detections


@torch.no_grad()
def predict(
    detect: Callable[[Tensor, list[str]], list[Detections]],
    dataset: Dataset,
    frame: Frame,
    batch_size: int = 32,
    device: torch.device | None = None,
    text_of: Callable[[ImageRecord], str] | None = None,
) -> list[dict]:
    """COCO result dicts (image_id, category_id, bbox XYWH in pixels of the stored image, score) for a dataset.

    Args:
        detect: images (B, 3, H, W) in [-1, 1] and their words -> detections in pixels of that size.
    """
    category_ids = [category.id for category in dataset.categories]
    results = []
    for records, pixels in batches_of(dataset, frame, batch_size):
        texts = [text_of(record) if text_of else "" for record in records]
        found = detect(pixels if device is None else pixels.to(device), texts)
        size = (pixels.shape[-1], pixels.shape[-2])
        for record, detections in zip(records, found, strict=True):
            results += as_results(record, size, detections, category_ids)
    return results


def as_results(
    record: ImageRecord, size: tuple[int, int], detections: Detections, category_ids: list[int]
) -> list[dict]:
    """Detections on an image that was seen at `size` (width, height) as COCO results, in pixels of the stored image."""
    scale = torch.tensor([record.width / size[0], record.height / size[1]]).repeat(2)
    boxes = detections.boxes_xyxy.float().cpu() * scale
    boxes[:, 2:] -= boxes[:, :2]
    kept = (boxes[:, 2:] > 0).all(dim=1)
    rows = zip(
        boxes[kept].tolist(),
        detections.labels.cpu()[kept].tolist(),
        detections.scores.cpu()[kept].tolist(),
        strict=True,
    )
    return [
        {"image_id": record.id, "category_id": category_ids[label], "bbox": box, "score": score}
        for box, label, score in rows
    ]
