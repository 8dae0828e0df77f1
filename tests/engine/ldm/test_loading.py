"""Folders that are refused, each with what is wrong with it; and the device."""

import json
import shutil

import pytest
import torch
from diffusers import UNet2DConditionModel

from engine.errors import ModelError
from engine.ldm.device import choose_device
from engine.ldm.diffusion import load_ldm


@pytest.fixture
def copy_of(model_of, tmp_path):
    def copy(family):
        shutil.copytree(model_of(family), tmp_path / family)
        return tmp_path / family

    return copy


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("family", "named", "match"),
    [
        ("sdxl", {"text_encoder_2": ["transformers", "BertModel"]}, "BertModel.*text_encoder_2"),
        ("sdxl", {"text_encoder_2": [None, None]}, "text_encoder_2.*CLIPTextModelWithProjection"),
        ("sd1", {"scheduler": ["os", "system"]}, "os.*scheduler"),
        ("sd1", {"tokenizer": ["antigravity", "CLIPTokenizer"]}, "antigravity"),
        ("sd1", {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}, "FlowMatch"),
        ("pixart", {"transformer": ["my_code", "PixArtTransformer2DModel"]}, "my_code"),
        ("sd1", {"_class_name": "StableDiffusion3Pipeline"}, "StableDiffusion3Pipeline.*PixArtSigmaPipeline"),
        ("sd1", {"_class_name": ["a", "b"]}, "pipeline"),
    ],
)
def test_classes_of_a_folders_own_choosing_are_refused(family, named, match, copy_of):
    folder = copy_of(family)
    edit(folder / "model_index.json", **named)
    with pytest.raises(ModelError, match=match):
        load_ldm(folder, device="cpu")


def test_models_that_want_more_than_a_text_are_refused(copy_of, model_of):
    inpainting = copy_of("sd1")
    config = json.loads((inpainting / "unet" / "config.json").read_text())
    UNet2DConditionModel.from_config({**config, "in_channels": 9}).save_pretrained(inpainting / "unet")
    with pytest.raises(ModelError, match="9 channels.*inpainting"):
        load_ldm(inpainting, device="cpu")
    refiner = copy_of("sdxl")
    config = json.loads((refiner / "unet" / "config.json").read_text())
    smaller = {**config, "projection_class_embeddings_input_dim": 5 * 8 + 24}
    UNet2DConditionModel.from_config(smaller).save_pretrained(refiner / "unet")
    with pytest.raises(ModelError, match="64 numbers.*Refiners"):
        load_ldm(refiner, device="cpu")


def test_predictions_that_the_samplers_do_not_know_are_refused(copy_of):
    folder = copy_of("sd2")
    edit(folder / "scheduler" / "scheduler_config.json", prediction_type="sample")
    with pytest.raises(ModelError, match="'sample'"):
        load_ldm(folder, device="cpu")


def test_missing_parts_and_broken_records_are_refused(copy_of):
    folder = copy_of("pixart")
    (folder / "adaptation.json").write_text('{"base": {"id": 3}}')
    with pytest.raises(ModelError, match="adaptation.json does not say"):
        load_ldm(folder, device="cpu")
    (folder / "adaptation.json").write_text("[" * 10_000)
    with pytest.raises(ModelError, match="adaptation.json cannot be read"):
        load_ldm(folder, device="cpu")
    (folder / "adaptation.json").unlink()
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(ModelError, match="does not load as a PixArtSigmaPipeline"):
        load_ldm(folder, device="cpu")


def test_a_device_that_is_not_there_is_refused():
    assert choose_device("cpu") == torch.device("cpu")
    for name, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())):
        if not there:
            with pytest.raises(ModelError, match=f"ldm.device is {name}"):
                choose_device(name)
