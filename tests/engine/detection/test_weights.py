"""Weights that a detector starts from: safetensors of a whole one, or of its backbone."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet50

from engine.config import load_settings
from engine.detection.build import build_detector
from engine.detection.zoo.weights import weights_sha256
from engine.errors import ModelError
from engine.sections import DetectorSettings


def settings_of(name: str, **changes) -> DetectorSettings:
    return dataclasses.replace(load_settings().detector, name=name, resolution=64, **changes)


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(7)
    return resnet50(weights=None)


@pytest.fixture(scope="module")
def backbone_file(backbone, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(backbone.state_dict(), path)
    return path


@pytest.mark.parametrize("name", ["dino_resnet50", "fcos_resnet50_fpn"])
def test_a_backbone_alone_fills_the_backbone_and_its_first_layers_stay(name, backbone, backbone_file):
    size = "tiny" if name == "dino_resnet50" else "full"
    module = build_detector(settings_of(name, size=size, weights=str(backbone_file.parent)), 3).module
    body = module.backbone if name == "dino_resnet50" else module.model.backbone.body
    for part in ("conv1.weight", "layer4.2.conv3.weight", "bn1.running_var"):
        assert torch.equal(body.state_dict()[part], backbone.state_dict()[part])
    trained = {name for name, p in body.named_parameters() if p.requires_grad}
    assert any(name.startswith("layer2") for name in trained)
    assert not any(name.startswith(("conv1", "layer1")) for name in trained)


def test_a_whole_detector_fills_all_but_its_classes(tmp_path):
    torch.manual_seed(0)
    settings = settings_of("fasterrcnn_mobilenet_v3_large_fpn")
    whole = build_detector(settings, 3).module
    file = tmp_path / "detector.safetensors"
    save_file({name: value.clone() for name, value in whole.state_dict().items()}, file)
    five = build_detector(dataclasses.replace(settings, weights=str(file)), 5).module.state_dict()
    state = whole.state_dict()
    fresh = {name for name in five if not torch.equal(five[name], state[name])}
    assert {name.split(".")[2] for name in fresh} == {"box_predictor"}


def test_a_transformer_starts_from_a_folder_of_its_library(tmp_path):
    torch.manual_seed(0)
    saved = build_detector(settings_of("rtdetr_v2", size="tiny"), 3).module.model
    saved.save_pretrained(tmp_path, safe_serialization=True)
    loaded = build_detector(settings_of("rtdetr_v2", weights=str(tmp_path)), 5).module.model
    assert loaded.config.num_labels == 5 and loaded.config.d_model == 64
    name = "model.encoder_input_proj.0.0.weight"
    assert torch.equal(loaded.state_dict()[name], saved.state_dict()[name])


def test_what_does_not_fit_or_cannot_be_read_is_said(tmp_path, backbone_file):
    with pytest.raises(ModelError, match="lacks .* tensors of the backbone"):
        build_detector(settings_of("fasterrcnn_mobilenet_v3_large_fpn", weights=str(backbone_file)), 3)
    pickled = tmp_path / "model.pth"
    pickled.write_bytes(b"")
    for weights in (pickled, tmp_path / "absent"):
        with pytest.raises(ModelError, match="no safetensors file"):
            build_detector(settings_of("fcos_resnet50_fpn", weights=str(weights)), 3)
    broken = tmp_path / "model.safetensors"
    broken.write_bytes(b"no")
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        build_detector(settings_of("fcos_resnet50_fpn", weights=str(broken)), 3)
    with pytest.raises(ModelError, match="no rtdetr_v2 can be read"):
        build_detector(settings_of("rtdetr_v2", weights=str(broken)), 3)


def test_weights_at_a_path_are_pinned_by_their_content(backbone_file):
    assert weights_sha256(settings_of("fcos_resnet50_fpn")) is None
    assert len(weights_sha256(settings_of("fcos_resnet50_fpn", weights=str(backbone_file)))) == 64
