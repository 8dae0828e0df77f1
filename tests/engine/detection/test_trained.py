"""A trained detector on disk: what is read again finds the same boxes, and nothing else is read."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.config import load_settings
from engine.data.dataset import Category
from engine.detection.build import build_detector
from engine.detection.trained import CARD, load_detector, save_detector
from engine.errors import ModelError
from engine.sections import DETECTORS

CLASSES = (Category(3, "cat"), Category(7, "dog"))
TINY = ("dino_resnet50", "small:rtdetr", "rtdetr_v2", "d_fine", "deformable_detr", "lw_detr", "rf_detr")


def settings_of(name: str, **more):
    size = "tiny" if name in TINY else "full"
    changes = {"name": name, "resolution": 64, "width": 32, "size": size, **more}
    return dataclasses.replace(load_settings().detector, **changes)


def boxes_of(module, pixels):
    return [torch.cat([f.boxes_xyxy, f.scores[:, None], f.labels[:, None]], 1) for f in module.detect(pixels)]


@pytest.fixture
def folder(tmp_path):
    settings = settings_of("small")
    torch.manual_seed(0)
    save_detector(build_detector(settings, 2).module, settings, CLASSES, tmp_path / "detector")
    return tmp_path / "detector"


@pytest.mark.parametrize("name", [*DETECTORS, "small:rtdetr"])
def test_what_is_read_again_finds_the_same(name, tmp_path):
    settings = settings_of(name)
    torch.manual_seed(0)
    built = build_detector(settings, 2)
    width, height = built.frame.size_of(64, 64)
    pixels = torch.rand(2, 3, height, width) * 2 - 1
    built.module.train()
    with torch.no_grad():
        for part in built.module.modules():  # statistics that were taken, as after a training
            if isinstance(part, torch.nn.BatchNorm2d):
                part.running_mean.normal_(std=0.1)
    before = boxes_of(built.module.eval(), pixels)
    card = save_detector(built.module, settings, CLASSES, tmp_path / "d", seed=5)
    again, read = load_detector(tmp_path / "d")
    assert read == json.loads(json.dumps(card)) and read["seed"] == 5 and again.frame == built.frame
    assert [c["name"] for c in read["classes"]] == ["cat", "dog"]
    for one, other in zip(before, boxes_of(again.module, pixels), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_one_that_began_with_other_weights_needs_them_no_more(tmp_path):
    fresh = settings_of("fasterrcnn_mobilenet_v3_large_fpn")
    torch.manual_seed(0)
    start = tmp_path / "start.safetensors"
    save_file(build_detector(fresh, 2).module.state_dict(), start)
    settings = dataclasses.replace(fresh, weights=str(start))
    module = build_detector(settings, 2).module
    save_detector(module, settings, CLASSES, tmp_path / "d")
    start.unlink()
    again, _ = load_detector(tmp_path / "d")
    for name, value in module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[name])


def test_a_folder_without_a_detector_says_what_belongs_there(tmp_path):
    with pytest.raises(ModelError, match=r"detector\.json and model\.safetensors belong there.*de train-detector"):
        load_detector(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', '{"format": 1, "classes": [3], "settings": {}}'])
def test_a_broken_card_is_one_message(folder, text):
    (folder / CARD).write_text(text)
    with pytest.raises(ModelError, match="not a detector's card"):
        load_detector(folder)


def test_another_format_is_refused(folder):
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**card, "format": 99}))
    with pytest.raises(ModelError, match="has format 99"):
        load_detector(folder)


def test_other_weights_than_the_card_describes_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 1}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="sha256 differs"):
        load_detector(folder)
