"""First settings: of the size of the images and the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from engine.data.dataset import Dataset
from engine.data.records import ImageRecord
from engine.ldm import embedded_folder
from tasks.starting_values import choose_values


def images(edge: int, count: int = 200) -> Dataset:
    records = tuple(ImageRecord(i, f"{i}.png", 2 * edge, edge, {}) for i in range(1, count + 1))
    return Dataset(Path("x"), "train", records, (), ())


def large_model(folder: Path, cells: int = 64) -> str:
    """The json files of a model of 8 px a latent cell; no weights."""
    for name in ("model_index.json", "unet/config.json", "vae/config.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(embedded_folder() / name, folder / name)
    for name, values in (("unet", {"sample_size": cells}), ("vae", {"block_out_channels": [1, 2, 3, 4]})):
        file = folder / name / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return str(folder)


@pytest.mark.parametrize(("edge", "resolution"), [(40, 64), (64, 64), (95, 64), (96, 96), (480, 96)])
def test_a_small_model_works_at_the_images_size_within_what_it_draws(edge, resolution):
    values = choose_values(images(edge), "world", None, "photo")
    assert values.small and values.resolution == values.detector_resolution == resolution


@pytest.mark.parametrize("edge", [64, 480, 3000])
def test_a_large_model_works_at_its_own_size_whatever_the_images_are(tmp_path, edge):
    values = choose_values(images(edge), large_model(tmp_path), None, "photo")
    assert not values.small and values.resolution == 512 and 32 <= values.detector_resolution <= min(edge, 320)
    assert ("shrink" in values.why_resolution) == (edge == 3000)


@pytest.mark.parametrize(("count", "steps"), [(1, 2000), (1000, 3800), (10**6, 90_000)])
def test_more_images_give_a_longer_training_of_the_adapter_within_bounds(tmp_path, count, steps):
    values = choose_values(images(480, count), large_model(tmp_path), None, "photo")
    assert values.adapter_steps == steps and values.adapter_passes >= 1
