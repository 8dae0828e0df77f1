"""`de train-adapter`: train the adapter on real labelled images and measure it on held-out ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from engine.adapter.adapter import build_adapter, build_reader, describe, frame_of, save_adapter
from engine.adapter.thresholds import choose_thresholds
from engine.config import Settings, as_dict
from engine.data.dataset import Dataset, ImageRecord, read_dataset, splits_of
from engine.detection.prediction import predict
from engine.detection.samples import BatchSource, Source
from engine.detection.schedule import OptimisationSettings
from engine.detection.training import fit
from engine.errors import DatasetError
from engine.evaluation.coco_map import evaluate
from engine.generation.prompts import prompt_of
from engine.ldm.diffusion import load_ldm
from engine.ldm.sampling import last_timestep


def train_adapter(data: Path, ldm: str | Path, out: Path, settings: Settings) -> dict:
    """Train on `data`/train.json, measure on val.json, write the checkpoint folder `out`. Returns its card.

    Raises:
        DatasetError: no labelled training image, or another list of classes in val.json.
    """
    options = settings.adapter
    train = read_dataset(data, "train")
    val = read_dataset(data, "val") if "val" in splits_of(data) else None
    if not train.annotations:
        raise DatasetError(f"{data / 'train.json'} holds no box to learn from. Label some images first.")
    if val is not None and val.categories != train.categories:
        raise DatasetError(f"{data}: val.json and train.json list different categories. Import the dataset again.")
    model = load_ldm(ldm, settings.ldm.revision, settings.ldm.dtype, settings.ldm.device, options.taps)
    frame = frame_of(model, settings.ldm.resolution)
    drawing = settings.generation
    timestep = (
        options.timestep if options.timestep is not None else last_timestep(model, drawing.sampler, drawing.steps)
    )
    torch.manual_seed(options.seed)
    reader = build_reader(options, settings.detr, len(train.categories), model).to(model.device)
    adapter = build_adapter(reader, model, timestep, options.seed)
    batches = BatchSource([Source(train)], frame, options.batch_size, options.seed, text_of(train, settings))
    record = fit(adapter, batches, OptimisationSettings.of(options), "adapter", model.device)
    adapter.eval()
    card = describe(model, settings, timestep, train.categories)
    card["training"] = {
        "data_sha256": train.digest(),
        "images": len(train.images),
        "boxes": len(train.annotations),
        "settings": as_dict(options),
        "curve": record.curve,
    }
    if val is not None:
        results = predict(adapter.detect, val, frame, device=model.device, text_of=text_of(val, settings))
        card["validation"] = {"images": len(val.images), **dataclasses.asdict(evaluate(val, results))}
        card["thresholds"] = choose_thresholds(val, results, options.wanted_precision, settings.generation.suppress_iou)
    return save_adapter(reader, card, out)


def text_of(dataset: Dataset, settings: Settings) -> Callable[[ImageRecord], str]:
    """The words that the diffusion model reads with an image, by `adapter.prompt`."""
    if settings.adapter.prompt == "none":
        return lambda record: ""
    generation = dataclasses.replace(settings.generation, prompt=settings.adapter.prompt)
    return lambda record: prompt_of(dataset, record, generation)
