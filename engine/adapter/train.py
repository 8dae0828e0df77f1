"""`de train-adapter`: train the adapter on real labelled images and measure it on held-out ones."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from engine.adapter.adapter import build_adapter, build_reader, describe, frame_of, save_adapter
from engine.adapter.cache import FromCache, build_cache
from engine.adapter.thresholds import choose_thresholds
from engine.config import as_dict, digest
from engine.data.dataset import Dataset, ImageRecord, read_dataset, splits_of
from engine.detection.detector import Detector
from engine.detection.examples import ExampleSheet
from engine.detection.journal import Journal
from engine.detection.prediction import predict
from engine.detection.processes import is_main_process, take_own_gpu, wait_for_all
from engine.detection.samples import BatchSource, Source
from engine.detection.schedule import OptimisationSettings
from engine.detection.state import STATE, remove_state
from engine.detection.training import TrainingRecord, fit
from engine.errors import DatasetError
from engine.evaluation.coco_map import evaluate
from engine.generation.prompts import prompt_of
from engine.ldm.diffusion import LatentDiffusion, load_ldm
from engine.ldm.sampling import last_timestep
from engine.sections import Settings


def train_adapter(data: Path, ldm: str | Path, out: Path, settings: Settings) -> dict:
    """Train on `data`/train.json, measure on val.json, write the checkpoint folder `out`. Returns its card.

    A training that was stopped goes on from its last state in `out`; curves and examples are written there as it goes.

    Raises:
        DatasetError: no labelled training image, or another list of classes in val.json.
        RunConflict: `out` holds the state of a training with other settings, data or model.
        RunFailed: the loss is not finite, or the memory or disk is not enough.
    """
    options = settings.adapter
    train = read_dataset(data, "train")
    val = read_dataset(data, "val") if "val" in splits_of(data) else None
    if not train.annotations:
        raise DatasetError(f"{data / 'train.json'} holds no box to learn from. Label some images first.")
    if val is not None and val.categories != train.categories:
        raise DatasetError(f"{data}: val.json and train.json list different categories. Import the dataset again.")
    take_own_gpu()
    model = load_ldm(ldm, settings.ldm.revision, settings.ldm.dtype, settings.ldm.device, options.taps)
    frame = frame_of(model, settings.ldm.resolution)
    drawing = settings.generation
    timestep = (
        options.timestep if options.timestep is not None else last_timestep(model, drawing.sampler, drawing.steps)
    )
    torch.manual_seed(options.seed)
    reader = build_reader(options, settings.detr, len(train.categories), model).to(model.device)
    adapter = build_adapter(reader, model, timestep, options.stem)
    card = describe(model, settings, timestep, train.categories)
    batches = BatchSource(
        [Source(train)],
        frame,
        options.batch_size,
        options.seed,
        text_of(train, settings),
        masks=options.head == "maskrcnn",
        augment=options.augment,
        steps=options.steps,
    )
    examples = None
    if val is not None:
        examples = ExampleSheet(val, frame, adapter.detect, model.device, text_of(val, settings))
    decides = digest([train.digest(), card, settings.ldm.dtype, options.cache, options.cache_views, options.augment])
    record = _fit(adapter, batches, settings, model, out, decides, Journal(out, examples))
    adapter.eval()
    card["training"] = {
        "data_sha256": train.digest(),
        "images": len(train.images),
        "boxes": len(train.annotations),
        "settings": asked_for(settings),
        "curve": record.curve,
    }
    if val is not None:
        results = predict(adapter.detect, val, frame, device=model.device, text_of=text_of(val, settings))
        card["validation"] = {"images": len(val.images), **dataclasses.asdict(evaluate(val, results))}
        card["thresholds"] = choose_thresholds(val, results, options.wanted_precision, settings.generation.suppress_iou)
    if is_main_process():
        card = save_adapter(reader, card, out)
        remove_state(out / STATE)
        if options.cache != "none":
            shutil.rmtree(_cache_folder(out, options.cache))
    wait_for_all()
    return card


def _fit(
    adapter: Detector,
    batches: BatchSource,
    settings: Settings,
    model: LatentDiffusion,
    out: Path,
    decides: str,
    journal: Journal,
) -> TrainingRecord:
    """Train the adapter, on a cache if the settings say so. `decides`: digest of data, model and head."""
    options, module = settings.adapter, adapter
    if options.cache != "none":
        module = FromCache(adapter, options.cache)
        folder = _cache_folder(out, options.cache)
        key = digest([decides, options.seed, options.bfloat16])
        batches = build_cache(folder, options.cache, options.cache_views, adapter, batches, options.bfloat16, key)
    optimisation = OptimisationSettings.of(options)
    return fit(module, batches, optimisation, "adapter", model.device, out / STATE, decides, journal)


def _cache_folder(out: Path, kind: str) -> Path:
    return out / f"cache-{kind}"


def asked_for(settings: Settings) -> dict:
    """The settings that decide what an adapter becomes, json-ready: equal ones on equal data and model make it anew."""
    generation = settings.generation
    asked = {
        "adapter": as_dict(settings.adapter),
        "detr": as_dict(settings.detr),
        "resolution": settings.ldm.resolution,
    }
    if settings.adapter.timestep is None:  # then the sampler decides; DDIM's last step is the same for any number
        asked["sampler"] = [generation.sampler, 0 if generation.sampler == "ddim" else generation.steps]
    if settings.adapter.prompt != "none":
        asked["words"] = [generation.domain, generation.style]
    return asked


def text_of(dataset: Dataset, settings: Settings) -> Callable[[ImageRecord], str]:
    """The words that the diffusion model reads with an image, by `adapter.prompt`."""
    if settings.adapter.prompt == "none":
        return lambda record: ""
    generation = dataclasses.replace(settings.generation, prompt=settings.adapter.prompt)
    return lambda record: prompt_of(dataset, record, generation)
