"""`de train-adapter`: train the adapter on real labelled images and measure it on held-out ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from engine.adapter.adapter import LdmBackbone, build_reader, describe, detector_of, frame_of, save_adapter
from engine.config import Settings, as_dict
from engine.data.dataset import read_dataset, splits_of
from engine.detection.samples import BatchSource, Source
from engine.detection.training import OptimisationSettings, fit, predict
from engine.errors import DatasetError
from engine.evaluation.coco_map import evaluate
from engine.ldm.diffusion import load_ldm


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
    model = load_ldm(ldm, settings.ldm.revision, settings.ldm.dtype, settings.ldm.device)
    frame = frame_of(model, settings.ldm.resolution)
    torch.manual_seed(options.seed)
    reader = build_reader(options, len(train.categories), model).to(model.device)
    backbone = LdmBackbone(model, options.timestep, options.seed)
    loss_of, detect = detector_of(reader, backbone)
    record = fit(
        list(reader.parameters()),
        loss_of,
        BatchSource([Source(train)], frame, options.batch_size, options.seed),
        OptimisationSettings.of(options),
        "adapter",
        model.device,
    )
    reader.eval()
    backbone.eval()
    card = describe(model, options, train.categories, settings.ldm.resolution)
    card["training"] = {
        "data_sha256": train.digest(),
        "images": len(train.images),
        "boxes": len(train.annotations),
        "settings": as_dict(options),
        "curve": record.curve,
    }
    if val is not None:
        metrics = evaluate(val, predict(detect, val, frame, device=model.device))
        card["validation"] = {"images": len(val.images), **dataclasses.asdict(metrics)}
    return save_adapter(reader, card, out)
