from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image

from engine.baselines.copy_paste import CutOut, copy_paste, cut_objects, paste_onto
from engine.baselines.request import BaselineRequest
from engine.data.dataset import read_dataset, write_dataset
from engine.errors import DatasetError
from engine.sections import Settings


def test_objects_are_cut_along_their_masks_and_by_their_boxes_without(world_folder):
    train = read_dataset(world_folder, "train")
    boxes_only = dataclasses.replace(
        train, annotations=tuple(dataclasses.replace(a, extra={}) for a in train.annotations)
    )
    by_mask, by_box = cut_objects(train), cut_objects(boxes_only)
    assert len(by_mask) == len(by_box) == len(train.annotations)
    assert all(cut.mask.all() for cut in by_box) and not any(cut.mask.all() for cut in by_mask)
    assert all(a.pixels.shape == b.pixels.shape == (*a.mask.shape, 3) for a, b in zip(by_mask, by_box, strict=True))


def test_a_pasted_object_has_the_box_around_its_pixels_and_takes_from_those_it_covers(world_folder, monkeypatch):
    monkeypatch.setattr("engine.baselines.copy_paste.PASTED", (1, 1))
    train = read_dataset(world_folder, "train")
    record = train.images[0]
    pink = CutOut(np.full((20, 30, 3), (255, 0, 255), np.uint8), np.ones((20, 30), bool), 6)
    for seed in range(12):
        picture, boxes = paste_onto(train, record, [pink], np.random.default_rng(seed))
        is_pink = (np.asarray(picture).astype(int) - (255, 0, 255)).__abs__().max(axis=2) < 60
        union = np.zeros_like(is_pink)
        for category, (x, y, w, h), crowd in boxes:
            assert 0 <= x and x + w <= record.width and 0 <= y and y + h <= record.height and not crowd
            if category == 6:
                union[round(y) : round(y + h), round(x) : round(x + w)] = True
        # the outermost pixels are feathered
        assert is_pink.sum() > 0 and (is_pink & ~union).sum() == 0
    whole = CutOut(np.zeros((64, 64, 3), np.uint8), np.ones((64, 64), bool), 6)
    covered = [paste_onto(train, record, [whole], np.random.default_rng(seed))[1] for seed in range(20)]
    own = len(train.annotations_of(record.id))
    assert min(sum(c != 6 for c, _, _ in boxes) for boxes in covered) < own  # what is hidden has no box


def test_a_cut_out_on_its_own_colour_cannot_be_seen(world_folder, monkeypatch):
    train = read_dataset(world_folder, "train")
    white = Image.new("RGB", (64, 64), "white")
    monkeypatch.setattr("engine.baselines.copy_paste._load", lambda *_: white.copy())
    for mask in (np.ones((20, 30), bool), np.tri(20, 30, dtype=bool)):
        cut = CutOut(np.full((20, 30, 3), 255, np.uint8), mask, 6)
        for seed in range(4):
            picture, _ = paste_onto(train, train.images[0], [cut], np.random.default_rng(seed))
            assert np.asarray(picture).min() == 255


def test_the_same_seed_gives_the_same_bytes(world_folder, tmp_path):
    for name in "ab":
        request = BaselineRequest(tmp_path / name, Settings(), world_folder, images=5, seed=3)
        assert copy_paste(request).images == 5
    first, second = (read_dataset(tmp_path / name, "annotations") for name in "ab")
    assert first.digest() == second.digest()
    assert [i.extra["de"]["source_image_id"] for i in first.images] == [
        i.id for i in read_dataset(world_folder, "train").images[:5]
    ]


def test_without_objects_there_is_nothing_to_paste(world_folder, tmp_path):
    shutil.copytree(world_folder / "images", tmp_path / "bare" / "images")
    train = read_dataset(world_folder, "train")
    write_dataset(tmp_path / "bare", "train", train.images, [], train.categories)
    with pytest.raises(DatasetError, match="no object of at least 4 pixels"):
        copy_paste(BaselineRequest(tmp_path / "out", Settings(), tmp_path / "bare", images=1))
