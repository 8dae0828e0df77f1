"""Shared by the programs of this folder: train a detector on scenes of the embedded world and score it on others."""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from engine.adapter.adapter import LdmBackbone, build_adapter, build_reader, frame_of
from engine.adapter.train import text_of
from engine.data.dataset import read_dataset
from engine.detection.detector import ConvBackbone, Detector, Reader
from engine.detection.heads import HeadSettings
from engine.detection.prediction import predict
from engine.detection.samples import BatchSource, Source
from engine.detection.schedule import OptimisationSettings
from engine.detection.training import fit
from engine.evaluation.coco_map import Metrics, evaluate
from engine.ldm.diffusion import load_ldm
from engine.sections import AdapterSettings, DetrSettings, Settings

# A rate that transformer heads stand, not searched for; what is not here is as the model's engine.json says.
HEAD_OVERRIDES = {
    "dino": ("adapter.learning_rate=5e-4",),
    "rtdetr": ("adapter.learning_rate=5e-4",),
}


@dataclass(frozen=True)
class Training:
    """One training to run: `kind` is "adapter", "scratch" (the same head on a convolutional backbone trained from
    nothing, at least as many weights) or "stem" (the adapter without the diffusion model's features)."""

    kind: str
    ldm: str
    data: Path
    settings: Settings
    seed: int
    label: str = ""


@dataclass(frozen=True)
class Score:
    """AP on the test scenes, trained weights, and CPU seconds: a training step, and an image at prediction."""

    training: Training
    metrics: Metrics
    parameters: int
    step_seconds: float
    image_seconds: float


def run_all(trainings: Iterable[Training], workers: int) -> Iterator[Score]:
    """Scores in the order of the trainings, `workers` processes of one thread each."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(train_and_score, trainings)


def train_and_score(training: Training) -> Score:
    """Train on `data`/train.json and score on `data`/test.json."""
    torch.set_num_threads(1)
    settings, seed = training.settings, training.seed
    options = dataclasses.replace(settings.adapter, seed=seed)
    train, test = read_dataset(training.data, "train"), read_dataset(training.data, "test")
    ldm = load_ldm(training.ldm, device="cpu", taps=options.taps)
    frame = frame_of(ldm, settings.ldm.resolution)
    torch.manual_seed(seed)
    module = build(training.kind, ldm, options, settings.detr, len(train.categories))
    masks = options.head == "maskrcnn"
    batches = BatchSource([Source(train)], frame, options.batch_size, seed, text_of(train, settings), masks=masks)
    name = f"{training.label or training.kind} {seed}"
    # CPU time of this one thread: what else the machine is busy with does not count.
    started = time.process_time()
    fit(module, batches, OptimisationSettings.of(options), name)
    step_seconds = (time.process_time() - started) / options.steps
    module.eval()
    started = time.process_time()
    results = predict(module.detect, test, frame, text_of=text_of(test, settings))
    image_seconds = (time.process_time() - started) / len(test.images)
    return Score(training, evaluate(test, results), count(module), step_seconds, image_seconds)


def build(kind: str, ldm, options: AdapterSettings, detr: DetrSettings, classes: int) -> Detector:
    """The untrained detector of a kind."""
    timestep = 1 if options.timestep is None else options.timestep
    if kind == "adapter":
        return build_adapter(build_reader(options, detr, classes, ldm), ldm, timestep, options.stem)
    if kind == "stem":
        return stem_only(ldm, options, detr, timestep, classes)
    wanted = count(build_reader(options, detr, classes, ldm))
    sizes = (scratch(width, options, detr, classes) for width in range(32, 512, 16))
    return next(detector for detector in sizes if count(detector) >= wanted)


def scratch(width: int, options: AdapterSettings, detr: DetrSettings, classes: int) -> Detector:
    """The adapter's reader, without latent stem, on a convolutional backbone of so many channels."""
    conv = ConvBackbone(width)
    head = HeadSettings(options.head, options.width, options.convs, detr)
    return Detector(conv, Reader(head, classes, conv.channels, conv.strides, options.extra_levels))


def stem_only(ldm, options: AdapterSettings, detr: DetrSettings, timestep: int, classes: int) -> Detector:
    """The adapter, latent stem and all, with nothing in the diffusion model's features."""
    reader = build_reader(options, detr, classes, ldm)
    return Detector(WithoutFeatures(LdmBackbone(ldm, timestep, options.stem)), reader)


class WithoutFeatures(nn.Module):
    """A backbone's noisy latents, and zeros in place of its features."""

    def __init__(self, backbone: LdmBackbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, pixels, texts=None):
        latents, *levels = self.backbone(pixels, texts)
        return [latents, *(torch.zeros_like(level) for level in levels)]


def count(module: nn.Module) -> int:
    """Trained weights."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
