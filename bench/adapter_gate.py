"""The embedded model's gate: does the adapter beat the same head on a from-scratch backbone, on the same labels?

    uv run python bench/adapter_gate.py --labels 150 --seeds 3

Both train with the same head, boxes, augmentation, batch size and number of steps, and are scored on the same held-out
scenes. The from-scratch backbone is as large as makes it train at least as many weights as the adapter does. A third
kind, "stem", is the adapter without the diffusion model's features: its latent stem and head alone. Prints one row a
training and the ranges; --record writes them into the model's card.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from engine.adapter.adapter import LdmBackbone, build_adapter, build_reader, frame_of
from engine.config import AdapterSettings, DetrSettings, load_settings
from engine.data.dataset import read_dataset
from engine.data.world import write_world
from engine.detection.detector import ConvBackbone, Detector, LatentStem, Reader
from engine.detection.heads import HeadSettings
from engine.detection.samples import BatchSource, Source
from engine.detection.training import OptimisationSettings, fit, predict
from engine.evaluation.coco_map import evaluate
from engine.ldm.card import GATE, write_card
from engine.ldm.diffusion import find_ldm, load_ldm

KINDS = ("adapter", "scratch", "stem")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ldm", default="world", help="diffusion model's folder")
    parser.add_argument("--labels", type=int, default=150)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", action="store_true", help="write gate.json and the card in the model's folder")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="section.key=value")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = load_settings(None, args.overrides, find_ldm(args.ldm))
    with tempfile.TemporaryDirectory() as folder:
        write_world(Path(folder), args.labels, 8, args.test)
        train, test = read_dataset(Path(folder), "train"), read_dataset(Path(folder), "test")
        maps: dict[str, list[float]] = {}
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            for kind in (args.only,) if args.only else KINDS:
                started = time.monotonic()
                metrics, parameters = train_and_score(kind, args.ldm, train, test, settings, seed)
                maps.setdefault(kind, []).append(metrics.map)
                print(
                    f"{kind:8s} seed {seed}: mAP {100 * metrics.map:5.1f}  AP50 {100 * metrics.map50:5.1f}  "
                    f"AP75 {100 * metrics.map75:5.1f}  {parameters / 1e6:.2f} M trained  "
                    f"{time.monotonic() - started:.0f} s",
                    flush=True,
                )
    if args.record:
        command = "python bench/adapter_gate.py " + " ".join(sys.argv[1:])
        gate = {"map": maps, "labels": args.labels, "test": args.test, "steps": settings.adapter.steps}
        folder = find_ldm(args.ldm)
        (folder / GATE).write_text(json.dumps({**gate, "command": command}, indent=1) + "\n", encoding="utf-8")
        write_card(folder)
    for kind, values in maps.items():
        mean = sum(values) / len(values)
        print(f"{kind:8s} mAP {100 * min(values):.1f} to {100 * max(values):.1f}, mean {100 * mean:.1f}")


def train_and_score(kind: str, ldm: str, train, test, settings, seed: int):
    """Train one kind with one seed; returns (Metrics on `test`, trained parameters)."""
    options = dataclasses.replace(settings.adapter, seed=seed)
    model = load_ldm(ldm, device="cpu", taps=options.taps)
    frame, classes = frame_of(model, settings.ldm.resolution), len(train.categories)
    timestep = 1 if options.timestep is None else options.timestep
    torch.manual_seed(seed)
    if kind == "adapter":
        module = build_adapter(build_reader(options, settings.detr, classes, model), model, timestep, seed)
    elif kind == "stem":
        module = stem_only(model, options, settings.detr, timestep, classes, seed)
    else:
        wanted = count(build_reader(options, settings.detr, classes, model))
        sizes = (scratch(width, options, settings.detr, classes) for width in range(32, 512, 16))
        module = next(detector for detector in sizes if count(detector) >= wanted)
    batches = BatchSource([Source(train)], frame, options.batch_size, seed)
    fit(module, batches, OptimisationSettings.of(options), f"{kind} {seed}")
    module.eval()
    return evaluate(test, predict(module.detect, test, frame)), count(module)


def scratch(width: int, options: AdapterSettings, detr: DetrSettings, classes: int) -> Detector:
    """The adapter's reader, without latent stem, on a convolutional backbone of so many channels."""
    conv = ConvBackbone(width)
    head = HeadSettings(options.head, options.width, options.convs, detr)
    return Detector(conv, Reader(head, classes, conv.channels, conv.strides, options.extra_levels))


def stem_only(model, options: AdapterSettings, detr: DetrSettings, timestep: int, classes: int, seed: int) -> Detector:
    """The adapter's latent stem and head on noisy latents, without the U-Net."""
    levels, head = len(model.taps), HeadSettings(options.head, options.width, options.convs, detr)
    stem = NoisyLatents(LdmBackbone(model, timestep, seed=seed), LatentStem(model.latent_channels, head.width, levels))
    strides = [tap.stride for tap in model.taps]
    return Detector(stem, Reader(head, classes, [head.width] * levels, strides, options.extra_levels))


class NoisyLatents(nn.Module):
    """The noisy latents of a backbone, and nothing else of it, through a stem."""

    def __init__(self, backbone: LdmBackbone, stem: LatentStem):
        super().__init__()
        self.backbone, self.stem = backbone, stem

    def forward(self, pixels, texts=None):
        return self.stem(self.backbone(pixels, texts)[0])


def count(module: nn.Module) -> int:
    """Trained weights."""
    return sum(p.numel() for p in module.parameters())


if __name__ == "__main__":
    main()
