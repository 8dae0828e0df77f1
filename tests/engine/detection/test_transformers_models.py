"""What the engine changes of transformers' detectors: ignore regions in their losses, and nothing else."""

import copy
import dataclasses

import pytest
import torch
from transformers.loss.loss_utils import LOSS_MAPPING

from engine.config import load_settings
from engine.detection.build import build_detector
from engine.detection.targets import Target
from engine.detection.zoo.transformers_models import FAMILIES, TransformersDetector

SIDE = 64


@pytest.fixture(scope="module", params=list(FAMILIES))
def detector(request) -> TransformersDetector:
    torch.manual_seed(0)
    settings = dataclasses.replace(load_settings().detector, name=request.param, size="tiny", resolution=SIDE)
    return build_detector(settings, num_classes=3).module.train()


def targets(ignore=()) -> list[Target]:
    regions = torch.tensor(ignore, dtype=torch.float32).reshape(-1, 4)
    boxes = torch.tensor([[4.0, 4.0, 24.0, 24.0], [10.0, 20.0, 50.0, 60.0]])
    return [Target(boxes, torch.tensor([0, 2]), regions), Target(boxes[:1], torch.tensor([1]), regions)]


def losses_of(detector: TransformersDetector, truth: list[Target]) -> dict[str, float]:
    torch.manual_seed(2)  # the denoising queries are random
    pixels = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3)) * 2 - 1
    return {name: value.item() for name, value in detector(pixels, truth).items()}


def test_without_ignore_regions_the_loss_is_the_librarys_own(detector):
    stock = copy.copy(detector.model)
    stock.loss_function = LOSS_MAPPING[type(detector.model).__name__]
    wholes = []
    hook = stock.register_forward_hook(lambda module, args, out: wholes.append(out.loss.item()))
    other = copy.copy(detector)
    other._modules = {**detector._modules, "model": stock}
    assert losses_of(other, targets()) == losses_of(detector, targets())
    hook.remove()
    assert sum(losses_of(detector, targets()).values()) == pytest.approx(wholes[0], rel=1e-5)


def test_an_ignore_region_changes_the_classification_loss_alone_and_by_what_it_covers(detector):
    everything = losses_of(detector, targets())
    half = losses_of(detector, targets([(32, 0, SIDE, SIDE)]))
    nothing = losses_of(detector, targets([(-SIDE, -SIDE, 2 * SIDE, 2 * SIDE)]))
    elsewhere = losses_of(detector, targets([(SIDE - 1, 0, SIDE - 1, 0)]))
    assert everything["classification"] > half["classification"] > nothing["classification"] > 0
    assert elsewhere == everything
    for name in everything.keys() - {"classification"}:
        assert everything[name] == half[name] == nothing[name]


def test_what_is_not_finite_is_left_to_the_training_loop(detector):
    broken = copy.deepcopy(detector)
    next(iter(broken.parameters())).data.fill_(torch.nan)
    assert not all(torch.isfinite(torch.tensor(value)) for value in losses_of(broken, targets()).values())


def test_losses_under_bfloat16_are_near_those_of_float32(detector):
    exact = losses_of(detector, targets())
    with torch.autocast("cpu", torch.bfloat16):
        rough = losses_of(detector, targets())
    assert sum(rough.values()) == pytest.approx(sum(exact.values()), rel=0.2)
