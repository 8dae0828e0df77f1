"""Pictures without labels join a dataset: copied, checked, never those of another split, and drawn from."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from engine.data.bare_pictures import add_pictures
from engine.data.dataset import read_dataset
from engine.data.sources import read_sources
from engine.data.validate import validate_dataset
from engine.data.world import render_scene
from engine.data.world_folder import write_world
from engine.errors import DatasetError


@pytest.fixture
def data(tmp_path):
    write_world(tmp_path / "data", 3, 2, 2)
    return tmp_path / "data"


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    for name, seed in (("a.png", 1), ("deep/b.png", 2), ("deep/c.JPG", 3)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        render_scene(seed).image.save(folder / name, format="JPEG" if name.endswith("JPG") else "PNG")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_they_can_be_drawn_from_and_the_labelled_splits_stay_as_they_were(data, pictures):
    before = {split: (data / f"{split}.json").read_bytes() for split in ("train", "val", "test")}
    done = add_pictures(data, pictures)
    assert (done.added, done.known, done.refused) == (3, 0, ()) and "3 pictures" in done.text()
    bare = read_dataset(data, "unlabelled")
    names = [image.file_name for image in bare.images]
    assert names == ["unlabelled/a.png", "unlabelled/deep/b.png", "unlabelled/deep/c.JPG"]
    assert [image.id for image in bare.images] == [4, 5, 6] and not bare.annotations
    assert bare.load(bare.images[0]).tobytes() == render_scene(1).image.tobytes()
    assert len(read_sources(data, unlabelled=True).images) == 6
    assert {split: (data / f"{split}.json").read_bytes() for split in before} == before
    assert not [finding for finding in validate_dataset(data) if finding.severity == "error"]


def test_pictures_of_any_split_and_those_added_before_do_not_join_again(data, pictures):
    for split in ("train", "val", "test"):
        record = read_dataset(data, split).images[0]
        os.link(data / "images" / record.file_name, pictures / f"{split}.png")
    done = add_pictures(data, pictures)
    assert (done.added, done.known) == (3, 3) and "byte for byte" in done.text()
    again = add_pictures(data, pictures)
    assert (again.added, again.known) == (0, 6)
    render_scene(9).image.save(pictures / "a.png")  # the old name, another picture
    assert add_pictures(data, pictures).added == 1
    bare = read_dataset(data, "unlabelled")
    assert [image.file_name for image in bare.images][3:] == ["unlabelled/a-2.png"]
    assert bare.load(bare.images[0]).tobytes() == render_scene(1).image.tobytes()


def test_what_cannot_be_used_is_refused_with_a_reason(data, pictures, tmp_path):
    (pictures / "cut.png").write_bytes((pictures / "a.png").read_bytes()[:200])
    (pictures / "out.png").symlink_to(data / "images" / "test_00001.png")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(pictures / "float.tiff")
    done = add_pictures(data, pictures)
    assert done.added == 3 and [name for name, _ in done.refused] == ["cut.png", "float.tiff", "out.png"]
    assert "cut off" in dict(done.refused)["cut.png"] and "leaves" in dict(done.refused)["out.png"]
    assert str(tmp_path) not in dict(done.refused)["cut.png"]


def test_folders_that_cannot_be_meant(data, pictures, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, words in (
        (tmp_path / "none", "no folder"),
        (tmp_path / "empty", "no picture"),
        (data / "images", "in each other"),
        (tmp_path, "in each other"),
    ):
        with pytest.raises(DatasetError, match=words):
            add_pictures(data, folder)
    with pytest.raises(DatasetError, match="train"):
        add_pictures(pictures, data)
    assert not (data / "unlabelled.json").exists()
