from __future__ import annotations

import dataclasses
import shutil

import pytest

from engine.baselines.making import BASELINES
from engine.baselines.manifest import decisions_of
from engine.baselines.relabelling import by_attention, by_detector
from engine.baselines.request import BaselineRequest
from engine.config import load_settings
from engine.curation.decisions import Decisions, write_decisions
from engine.data.dataset import read_dataset, write_dataset
from engine.errors import DatasetError

SETS = [
    *("detector.steps=3", "detector.batch_size=4", "detector.width=32", "detector.convs=1", "ldm.device=cpu"),
    *("ldm.resolution=64", "generation.score_threshold=0.06", "generation.ignore_threshold=0.05"),
    "generation.keep_negatives=true",
    "ldm.id=world",
]
SETTINGS = load_settings(None, SETS)


@pytest.fixture
def drawn(world_folder, tmp_path):
    """A stand-in for generated images: the validation scenes with their captions as prompts, and no box."""
    folder = tmp_path / "drawn"
    shutil.copytree(world_folder / "images", folder / "images")
    val = read_dataset(world_folder, "val")
    images = [
        dataclasses.replace(i, extra={"de": {"source_image_id": 1, "strength": 0.5, "prompt": i.extra["caption"]}})
        for i in val.images
    ]
    write_dataset(folder, "annotations", images, [], val.categories)
    return folder


def test_a_detector_of_the_same_labels_labels_the_same_images(world_folder, drawn, tmp_path):
    counts = by_detector(BaselineRequest(tmp_path / "out", SETTINGS, world_folder, drawn))
    labelled, pictures = (read_dataset(folder, "annotations") for folder in (tmp_path / "out", drawn))
    assert labelled.images == pictures.images and counts.images == len(pictures.images)
    assert counts.boxes + counts.ignored == len(labelled.annotations) > 0
    assert all((a.extra["score"] < 0.06) == bool(a.iscrowd) for a in labelled.annotations)


def test_images_that_review_rejected_are_not_labelled_anew(world_folder, drawn, tmp_path):
    pictures = read_dataset(drawn, "annotations")
    first, *others = pictures.images
    decisions = Decisions(frozenset(i.id for i in others), {first.id: "leakage"})
    before = decisions_of("detector", BASELINES["detector"], BaselineRequest(tmp_path, SETTINGS, world_folder, drawn))
    write_decisions(drawn, pictures, decisions)
    request = BaselineRequest(tmp_path / "out", SETTINGS, world_folder, drawn)
    assert decisions_of("detector", BASELINES["detector"], request)["generated"] != before["generated"]
    by_detector(request)
    assert list(read_dataset(tmp_path / "out", "annotations").images) == others
    by_attention(BaselineRequest(tmp_path / "words", SETTINGS, generated=drawn))
    assert first.id not in {image.id for image in read_dataset(tmp_path / "words", "annotations").images}


def test_attention_finds_only_classes_that_the_words_name(drawn, tmp_path):
    counts = by_attention(BaselineRequest(tmp_path / "out", SETTINGS, generated=drawn))
    labelled = read_dataset(tmp_path / "out", "annotations")
    names = {c.id: c.name for c in labelled.categories}
    assert counts.boxes == len(labelled.annotations) > 0
    for image in labelled.images:
        named = {names[a.category_id] for a in labelled.annotations_of(image.id)}
        assert all(name in image.extra["de"]["prompt"] for name in named)


def test_images_without_words_have_no_attention_to_read(drawn, tmp_path):
    pictures = read_dataset(drawn, "annotations")
    silent = [dataclasses.replace(i, extra={"de": {"source_image_id": 1, "prompt": ""}}) for i in pictures.images]
    write_dataset(drawn, "annotations", silent, [], pictures.categories)
    with pytest.raises(DatasetError, match="without words"):
        by_attention(BaselineRequest(tmp_path / "out", SETTINGS, generated=drawn))
