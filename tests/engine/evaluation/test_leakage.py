from __future__ import annotations

import dataclasses

import pytest
from PIL import Image, ImageOps

from engine.config import load_settings
from engine.data.dataset import read_dataset, subset, write_dataset
from engine.data.pixels import Frame
from engine.errors import DatasetError
from engine.evaluation.leakage import check_leakage, find_alike, find_leaks, search_leaks, search_val
from engine.ldm import embedded_folder
from engine.ldm.diffusion import load_ldm
from engine.sections import LdmSettings

SETTINGS = load_settings().compare
FOUND = "images that repeat val images"


@pytest.fixture
def splits(world_folder):
    return {split: read_dataset(world_folder, split) for split in ("train", "val", "test")}


def with_copies(splits, change, folder):
    """A dataset of copies of the first two test images, changed, and of two images that copy nothing."""
    test, train = splits["test"], splits["train"]
    (folder / "images").mkdir(parents=True)
    images = []
    for number, (dataset, place) in enumerate([(test, 0), (test, 1), (train, 0), (train, 1)]):
        record = dataset.images[place]
        picture = Image.open(dataset.image_path(record)).convert("RGB")
        name = f"copy-{number}.jpg"
        (change(picture) if dataset is test else picture).save(folder / "images" / name, quality=85)
        images.append(dataclasses.replace(record, id=number + 1, file_name=name))
    write_dataset(folder, "annotations", images, [], test.categories)
    return read_dataset(folder, "annotations")


@pytest.mark.parametrize("change", [lambda p: p, ImageOps.mirror, lambda p: p.point(lambda v: int(v * 0.9))])
def test_copies_of_test_images_stop_the_comparison_and_are_named(splits, tmp_path, change):
    copies = with_copies(splits, change, tmp_path / "de")
    held_out = {"test": splits["test"], "val": splits["val"]}
    found = find_leaks({"generated": copies}, held_out, SETTINGS.leak_distance)
    assert [(leak.image, leak.held_out) for leak in found] == [("copy-0.jpg", "test"), ("copy-1.jpg", "test")]
    assert [leak.repeats for leak in found] == [image.file_name for image in splits["test"].images[:2]]
    with pytest.raises(DatasetError, match="copy-0.jpg repeats test_00001.png"):
        check_leakage({"train": splits["train"], "generated": copies}, held_out, SETTINGS)
    reported = check_leakage(
        {"train": splits["train"], "generated": copies}, held_out, dataclasses.replace(SETTINGS, leakage="report")
    )
    assert reported["generated"] == {"images that repeat test images": 2, "images that repeat val images": 0}
    assert reported["train"] == {"images that repeat test images": 0, "images that repeat val images": 0}


def test_pictures_to_draw_from_and_to_choose_on_that_repeat_test_images_are_told(splits, tmp_path, caplog):
    real = tmp_path / "real"
    copies = with_copies(splits, lambda p: p, real)
    write_dataset(real, "unlabelled", copies.images, [], copies.categories)
    write_dataset(real, "val", copies.images[2:], [], copies.categories)
    counts = search_leaks(real, {"train": splits["train"]}, splits["test"], SETTINGS, None)
    assert counts["unlabelled"] == {"images that repeat test images": 2}
    assert counts["val"] == {"images that repeat test images": 0}
    assert counts["train"]["images that repeat val images"] == 2 and "unlabelled: copy-0.jpg repeats" in caplog.text
    assert search_leaks(real, {}, splits["test"], dataclasses.replace(SETTINGS, leakage="off"), None) == {}


def test_copies_of_validation_images_are_told_and_stop_nothing(splits, tmp_path, caplog):
    copies = with_copies(splits, lambda p: p, tmp_path / "de")
    counts = check_leakage({"generated": copies}, {"val": splits["test"]}, SETTINGS)
    assert counts["generated"] == {"images that repeat val images": 2} and "repeat images of val.json" in caplog.text


def test_what_is_chosen_by_validation_images_tells_what_repeats_them_by_features_too(splits, tmp_path, caplog):
    copies = with_copies(splits, lambda p: p, tmp_path / "de")
    ldm = LdmSettings(id="world", resolution=64, device="cpu")
    blind = dataclasses.replace(SETTINGS, leak_distance=0, leak_similarity=0.9)
    assert search_val({"generated": copies}, splits["test"], SETTINGS, None)["generated"] == {FOUND: 2}
    by_bits = search_val({"generated": copies}, splits["test"], blind, None)["generated"][FOUND]
    assert search_val({"generated": copies}, splits["test"], blind, ldm)["generated"][FOUND] == 2 >= by_bits
    assert "repeat images of val.json" in caplog.text
    assert search_val({"generated": copies}, splits["test"], dataclasses.replace(SETTINGS, leakage="off"), None) == {}


def test_features_are_compared_block_by_block_with_the_same_outcome(splits, tmp_path, monkeypatch):
    copies = with_copies(splits, lambda p: p, tmp_path / "de")
    ldm = load_ldm("world", device="cpu")
    arguments = ({"generated": copies}, {"test": splits["test"]}, 0.5, ldm, Frame(64, ldm.alignment))
    at_once = find_alike(*arguments)
    monkeypatch.setattr("engine.evaluation.leakage._BLOCK", 3)
    assert find_alike(*arguments) == at_once and len(at_once) >= 2


def test_a_dataset_without_images_has_no_features_and_no_leaks(splits):
    ldm = load_ldm(str(embedded_folder()), device="cpu")
    frame, empty = Frame(64, ldm.alignment), subset(splits["train"], set())
    assert find_alike({"unlabelled": empty}, {"test": subset(splits["test"], set())}, 0.9, ldm, frame) == []
    alike = find_alike({"unlabelled": empty, "copy": splits["test"]}, {"test": splits["test"]}, 0.9, ldm, frame)
    assert alike and {leak.where for leak in alike} == {"copy"}


def test_scenes_that_differ_are_no_leaks(splits):
    held_out = {"test": splits["test"], "val": splits["val"]}
    assert not find_leaks({"train": splits["train"]}, held_out, SETTINGS.leak_distance)


def test_features_find_copies_too(splits, tmp_path):
    copies = with_copies(splits, lambda p: p, tmp_path / "de")
    ldm = load_ldm(embedded_folder(), device="cpu")
    everything = {"generated": copies, "train": splits["train"]}
    alike = find_alike(everything, {"test": splits["test"]}, 0.9, ldm, Frame(64, ldm.alignment))
    assert {leak.image for leak in alike if leak.where == "generated"} == {"copy-0.jpg", "copy-1.jpg"}


def test_an_image_that_repeats_two_splits_stops_whichever_search_finds_the_test_image(splits, tmp_path):
    """Its validation twin differs in few bits; its test twin is so alike in features alone (a limit that says so)."""
    copies = with_copies(splits, lambda p: p, tmp_path / "de")
    one = subset(copies, [1])
    ldm = load_ldm(embedded_folder(), device="cpu")
    held_out = {"val": one, "test": subset(splits["val"], [splits["val"].images[0].id])}
    settings = dataclasses.replace(SETTINGS, leak_similarity=-1.0)
    assert {leak.held_out for leak in find_leaks({"train": one}, held_out, settings.leak_distance)} == {"val"}
    with pytest.raises(DatasetError, match="repeat images of test.json"):
        check_leakage({"train": one}, held_out, settings, ldm, 64)
