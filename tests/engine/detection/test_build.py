import dataclasses

import pytest
import torch

from engine.config import load_settings
from engine.detection.build import build_detector
from engine.detection.targets import Target


@pytest.mark.parametrize("name", ["small", "fasterrcnn_resnet50_fpn"])
def test_every_detector_by_name_trains_and_predicts_in_its_inputs_pixels(name):
    torch.manual_seed(0)
    settings = dataclasses.replace(load_settings().detector, name=name, resolution=64, width=32)
    built = build_detector(settings, num_classes=3)
    width, height = built.frame.size_of(640, 480)
    pixels = torch.rand(2, 3, height, width) * 2 - 1
    target = Target(torch.tensor([[8.0, 8.0, 40.0, 40.0]]), torch.tensor([2]), torch.zeros(0, 4))
    losses = built.module(pixels, [target, dataclasses.replace(target, labels=torch.tensor([0]))])
    loss = sum(losses.values())
    assert torch.isfinite(loss)
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in built.module.parameters())
    built.module.eval()
    for found in built.module.detect(pixels):
        assert ((found.labels >= 0) & (found.labels < 3)).all()
        assert (found.boxes_xyxy[:, 2] <= width).all() and (found.boxes_xyxy[:, 3] <= height).all()
