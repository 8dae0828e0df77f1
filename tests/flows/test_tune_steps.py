"""The steps of `de tune`, one by one, without a training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from engine.data.dataset import read_dataset, subset
from engine.data.world_folder import write_world
from flows.tune import TuneRequest, _search
from tasks.settings import open_settings

SETTINGS = open_settings(None, ["ldm.device=cpu"], "world")[1]


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune-steps") / "world"
    write_world(folder, 6, 4, 2, seed=3)
    return read_dataset(folder, "train"), read_dataset(folder, "val")


def request_of(settings=SETTINGS, **changes):
    values = {"data": Path(), "ldm": "world", "adapter": Path(), "out": Path(), "images": 16, "minutes": 5, "seed": 0}
    return TuneRequest(**{**values, **changes}, settings=settings)


def test_images_of_the_pool_that_repeat_validation_images_are_told(splits):
    train, val = splits
    told = []
    found = _search(request_of(), train, val, subset(val, [1, 2]), told.append)
    assert found["generated"] == {"images that repeat val images": 2}
    assert found["train"] == {"images that repeat val images": 0}
    assert len(told) == 1 and told[0].startswith("2 generated images that repeat val images")
    off = dataclasses.replace(SETTINGS, compare=dataclasses.replace(SETTINGS.compare, leakage="off"))
    assert _search(request_of(off), train, val, val, told.append) == {} and len(told) == 1
