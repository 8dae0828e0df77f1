"""The one training loop of adapters and detectors, and prediction on a dataset."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from engine.config import AdapterSettings, DetectorSettings
from engine.data.dataset import Dataset, ImageRecord
from engine.data.pixels import Frame, read_pixels, to_model
from engine.detection.samples import BatchSource
from engine.detection.targets import Detections
from engine.errors import RunFailed


@dataclass(frozen=True)
class OptimisationSettings:
    """AdamW with a short warm-up and a drop by ten at nine tenths, as in the paper's schedule."""

    steps: int
    learning_rate: float
    weight_decay: float
    clip_norm: float
    bfloat16: bool

    @classmethod
    def of(cls, section: AdapterSettings | DetectorSettings, steps_factor: float = 1.0) -> OptimisationSettings:
        """From a section of the settings, with so many times its steps."""
        steps = round(section.steps * steps_factor)
        return cls(steps, section.learning_rate, section.weight_decay, section.clip_norm, section.bfloat16)


@dataclass(frozen=True)
class TrainingRecord:
    """Loss curve as (step, mean loss since the entry before) and wall seconds."""

    curve: tuple[tuple[int, float], ...]
    seconds: float


def fit(
    model: nn.Module,
    batches: BatchSource,
    settings: OptimisationSettings,
    name: str,
    device: torch.device | None = None,
) -> TrainingRecord:
    """Minimise the sum of the losses that `model(pixels, targets, texts)` names.

    Raises:
        RunFailed: the loss is not finite; names the step.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    warmup = min(500, max(1, settings.steps // 20))
    drop = int(settings.steps * 0.9)
    curve, running, started = [], [], time.monotonic()
    for step in tqdm(range(settings.steps), desc=name, mininterval=5):
        rate = settings.learning_rate * min(1.0, (step + 1) / warmup) * (0.1 if step >= drop else 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = batches.batch(step)
        pixels, targets = batch.pixels, batch.targets
        if device is not None and device.type != "cpu":
            pixels, targets = pixels.to(device), [t.to(device) for t in targets]
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=settings.bfloat16):
            loss = sum(model(pixels, targets, batch.texts).values())
        if not torch.isfinite(loss):
            raise RunFailed(
                f"{name}: the loss is {loss.item()} at step {step}. Lower the learning rate "
                f"(now {settings.learning_rate}), or look for broken boxes with `de validate`."
            )
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        running.append(loss.item())
        if (step + 1) % max(1, settings.steps // 50) == 0 or step + 1 == settings.steps:
            curve.append((step + 1, sum(running) / len(running)))
            running = []
    return TrainingRecord(tuple(curve), time.monotonic() - started)


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
    by_size: dict[tuple[int, int], list] = {}
    for record in dataset.images:
        by_size.setdefault(frame.size_of(record.width, record.height), []).append(record)
    results = []
    for size, records in by_size.items():
        for start in range(0, len(records), batch_size):
            chunk = records[start : start + batch_size]
            pixels = to_model(torch.stack([read_pixels(dataset, record, size) for record in chunk]))
            texts = [text_of(record) if text_of else "" for record in chunk]
            found = detect(pixels if device is None else pixels.to(device), texts)
            for record, detections in zip(chunk, found, strict=True):
                results += _as_results(record, size, detections, category_ids)
    return results


def _as_results(record, size: tuple[int, int], detections: Detections, category_ids: list[int]) -> list[dict]:
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
