"""The size that a model was made for, told by its json files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from engine.errors import ModelError
from engine.ldm import embedded_folder
from engine.ldm.native_size import native_size

REVISION = "0123456789abcdef0123456789abcdef01234567"


def configs_only(target: Path) -> Path:
    """The embedded model without its weights."""
    for name in ("model_index.json", "unet/config.json", "vae/config.json"):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(embedded_folder() / name, target / name)
    return target


def change(file: Path, **values) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_it_is_the_latents_side_times_the_autoencoders_stride(tmp_path):
    assert native_size("world") == 64
    folder = configs_only(tmp_path / "model")
    change(folder / "unet" / "config.json", sample_size=64)
    change(folder / "vae" / "config.json", block_out_channels=[128, 256, 512, 512])
    assert native_size(folder) == 512


@pytest.mark.parametrize("size", [None, [64, 96], "64", 0])
def test_a_model_that_does_not_say_is_none(tmp_path, size):
    folder = configs_only(tmp_path / "model")
    change(folder / "unet" / "config.json", sample_size=size)
    assert native_size(folder) is None
    (folder / "unet" / "config.json").unlink()
    assert native_size(folder) is None


@pytest.mark.parametrize("source", ["nowhere", "a/b/c", "owner/name; touch PWNED"])
def test_what_is_no_model_is_refused_with_or_without_a_revision(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    for revision in (None, REVISION):
        with pytest.raises(ModelError, match="No diffusion model"):
            native_size(source, revision)


def test_a_hub_id_needs_its_commit():
    with pytest.raises(ModelError, match="revision"):
        native_size("owner/name")


def test_a_hub_model_is_read_from_the_cache_and_is_none_where_it_is_not(tmp_path, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert native_size("owner/name", REVISION) is None
    folder = configs_only(tmp_path / "models--owner--name" / "snapshots" / REVISION)
    assert native_size("owner/name", REVISION) == 64
    change(folder / "model_index.json", _class_name="FluxPipeline")
    with pytest.raises(ModelError, match="FluxPipeline"):
        native_size("owner/name", REVISION)
