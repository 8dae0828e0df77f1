from __future__ import annotations

import dataclasses

import pytest

from engine.data.dataset import read_dataset, write_dataset
from engine.data.sources import read_sources
from engine.data.subset import write_subset
from engine.errors import DatasetError


def test_the_others_lose_their_boxes_and_words_and_held_out_images_stay(world_folder, tmp_path):
    whole = read_dataset(world_folder, "train")
    assert all(image.extra.get("caption") for image in whole.images)
    sizes = write_subset(world_folder, tmp_path / "few", 3)
    few, rest = (read_dataset(tmp_path / "few", split) for split in ("train", "unlabelled"))
    assert sizes["train"] == len(few.images) == 3 and sizes["unlabelled"] == len(rest.images) == len(whole.images) - 3
    assert {i.id for i in few.images} | {i.id for i in rest.images} == {i.id for i in whole.images}
    assert all(few.annotations_of(i.id) == whole.annotations_of(i.id) for i in few.images)
    assert not rest.annotations and not any("caption" in image.extra for image in rest.images)
    for split in ("val", "test"):
        assert read_dataset(tmp_path / "few", split).digest() == read_dataset(world_folder, split).digest()


def test_choices_of_one_seed_are_nested_and_show_every_class_early(world_folder, tmp_path):
    chosen = {}
    for count in (3, 5, 8):
        write_subset(world_folder, tmp_path / str(count), count, seed=1)
        chosen[count] = {i.id for i in read_dataset(tmp_path / str(count), "train").images}
    assert chosen[3] < chosen[5] < chosen[8]
    every = {a.category_id for a in read_dataset(world_folder, "train").annotations}
    assert {a.category_id for a in read_dataset(tmp_path / "5", "train").annotations} == every


def test_a_folder_that_is_there_and_too_many_images_are_refused(world_folder, tmp_path):
    with pytest.raises(DatasetError, match="cannot be chosen"):
        write_subset(world_folder, tmp_path / "few", 1000)
    write_subset(world_folder, tmp_path / "few", 3)
    with pytest.raises(DatasetError, match="is there already"):
        write_subset(world_folder, tmp_path / "few", 3)


def test_sources_are_the_labelled_images_and_the_pictures_behind_them(world_folder, tmp_path):
    write_subset(world_folder, tmp_path / "few", 3)
    few = read_dataset(tmp_path / "few", "train")
    assert read_sources(tmp_path / "few", False) == few
    both = read_sources(tmp_path / "few", True)
    assert both.images[:3] == few.images and both.annotations == few.annotations
    assert {i.id for i in both.images} == {i.id for i in read_dataset(world_folder, "train").images}
    with pytest.raises(DatasetError, match="has no unlabelled.json"):
        read_sources(world_folder, True)
    again = [dataclasses.replace(i, id=900 + i.id) for i in few.images]
    write_dataset(tmp_path / "few", "unlabelled", again, [], few.categories)
    with pytest.raises(DatasetError, match="an id or a file of train.json"):
        read_sources(tmp_path / "few", True)


def test_all_labels_leave_no_pictures_without(world_folder, tmp_path):
    write_subset(world_folder, tmp_path / "all", len(read_dataset(world_folder, "train").images))
    assert not (tmp_path / "all" / "unlabelled.json").exists()


def test_a_picture_is_left_out_of_any_split_and_bare_pictures_stay(world_folder, tmp_path):
    train, val, test = (read_dataset(world_folder, split) for split in ("train", "val", "test"))
    write_subset(world_folder, tmp_path / "few", 3)
    few, bare = (read_dataset(tmp_path / "few", split) for split in ("train", "unlabelled"))
    gone = [dataset.images[1].file_name for dataset in (few, bare, test)]
    sizes = write_subset(tmp_path / "few", tmp_path / "less", None, without=gone)
    less = {split: read_dataset(tmp_path / "less", split) for split in ("train", "unlabelled", "val", "test")}
    assert {split: len(dataset.images) for split, dataset in less.items()} == sizes
    assert sizes == {
        "train": 2,
        "unlabelled": len(train.images) - 4,
        "val": len(val.images),
        "test": len(test.images) - 1,
    }
    assert [i.file_name for i in less["train"].images] == [few.images[0].file_name, few.images[2].file_name]
    assert all(less["train"].annotations_of(i.id) == train.annotations_of(i.id) for i in less["train"].images)
    assert {a.image_id for a in less["test"].annotations} <= {i.id for i in test.images} - {test.images[1].id}
    assert not any((tmp_path / "less" / "images" / name).exists() for name in gone)

    with pytest.raises(DatasetError, match=f"has no picture x{gone[0]} to leave out. Did you mean .*{gone[0]}"):
        write_subset(world_folder, tmp_path / "never", None, without=[f"x{gone[0]}"])
    assert not (tmp_path / "never").exists()
