from __future__ import annotations

import dataclasses

import pytest

from engine.data.across_domains import write_across_domains
from engine.data.dataset import Category, read_dataset, write_dataset
from engine.data.sources import read_sources
from engine.data.validate import validate_dataset
from engine.data.world_domains import SKETCH
from engine.data.world_folder import write_world
from engine.errors import DatasetError


@pytest.fixture(scope="module")
def sketches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("domains") / "sketch"
    write_world(folder, 5, 2, 3, seed=7, domain=SKETCH)
    return folder


def test_labels_come_from_one_domain_pictures_and_test_from_the_other(world_folder, sketches, tmp_path):
    sizes = write_across_domains(world_folder, sketches, tmp_path / "both")
    assert sizes["unlabelled"] == 5 and sizes["test"] == 3
    splits = {name: read_dataset(tmp_path / "both", name) for name in ("train", "val", "test", "unlabelled")}
    for name, folder in (("train", world_folder), ("val", world_folder), ("test", sketches)):
        whole = read_dataset(folder, name)
        assert [(a.bbox_xywh, a.category_id) for a in splits[name].annotations] == [
            (a.bbox_xywh, a.category_id) for a in whole.annotations
        ]
        assert [splits[name].load(i).tobytes() for i in splits[name].images] == [
            whole.load(i).tobytes() for i in whole.images
        ]
    pictures = splits["unlabelled"]
    assert not pictures.annotations and not any("caption" in image.extra for image in pictures.images)
    assert len(read_sources(tmp_path / "both", unlabelled=True).images) == sizes["train"] + 5
    assert not [f for f in validate_dataset(tmp_path / "both") if f.severity == "error"]


def test_classes_are_matched_by_name_and_others_refused(world_folder, sketches, tmp_path):
    for name in ("train", "test"):
        split = read_dataset(sketches, name)
        high = [dataclasses.replace(c, id=c.id + 100) for c in split.categories]
        boxes = [dataclasses.replace(a, category_id=a.category_id + 100) for a in split.annotations]
        for image in split.images:
            target = tmp_path / "high" / "images" / image.file_name
            target.parent.mkdir(parents=True, exist_ok=True)
            split.load(image).save(target)
        write_dataset(tmp_path / "high", name, split.images, boxes, high)
    write_across_domains(world_folder, tmp_path / "high", tmp_path / "both")
    test = read_dataset(tmp_path / "both", "test")
    assert test.categories == read_dataset(world_folder, "test").categories
    assert [a.category_id for a in test.annotations] == [
        a.category_id for a in read_dataset(sketches, "test").annotations
    ]
    with pytest.raises(DatasetError, match="is there already"):
        write_across_domains(world_folder, sketches, tmp_path / "both")
    test = read_dataset(tmp_path / "high", "test")
    write_dataset(tmp_path / "high", "test", test.images, [], [Category(1, "dragon")])
    with pytest.raises(DatasetError, match="different classes"):
        write_across_domains(world_folder, tmp_path / "high", tmp_path / "other")
