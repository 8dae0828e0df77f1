"""A detector that is kept: trained, resumed, used on pictures."""

import json
import shutil

import pytest
import torch
from PIL import Image

from engine.config import load_settings
from engine.data.dataset import read_dataset, write_dataset
from engine.detection.prediction import predict
from engine.detection.trained import load_detector
from engine.errors import DatasetError, ModelError
from engine.evaluation.coco_map import evaluate
from engine.evaluation.detect import SHEET, detect
from engine.evaluation.train_detector import train_detector

FAST = ["detector.steps=3", "detector.batch_size=4", "detector.width=32", "detector.convs=1", "detector.resolution=64"]
SETTINGS = load_settings(overrides=FAST)


@pytest.fixture(scope="module")
def generated(tmp_path_factory, world_folder):
    folder = tmp_path_factory.mktemp("generated") / "de"
    shutil.copytree(world_folder / "images", folder / "images")
    val = read_dataset(world_folder, "val")
    write_dataset(folder, "annotations", val.images, val.annotations, val.categories)
    return folder


@pytest.fixture(scope="module")
def detector(tmp_path_factory, world_folder, generated):
    out = tmp_path_factory.mktemp("trained") / "detector"
    train_detector(world_folder, out, SETTINGS, generated, seed=3)
    return out


def test_the_kept_detector_is_the_one_that_was_measured(detector, world_folder):
    built, card = load_detector(detector)
    val = read_dataset(world_folder, "val")
    scores = evaluate(val, predict(built.module.detect, val, built.frame))
    assert card["validation"]["map"] == pytest.approx(scores.map, abs=1e-6)
    assert card["seed"] == 3 and [s["share"] for s in card["trained_on"]] == [0.5, 0.5]
    assert not list(detector.glob("*state*")) and (detector / "examples.png").is_file()


def test_one_that_was_stopped_ends_with_the_same_weights(detector, world_folder, generated, tmp_path, monkeypatch):
    settings = load_settings(overrides=[*FAST, "detector.save_every=1"])
    from engine.detection import training

    whole = training._Training._save

    def stop_after(self):
        whole(self)
        if self.progress.step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(training._Training, "_save", stop_after)
    with pytest.raises(KeyboardInterrupt):
        train_detector(world_folder, tmp_path / "d", settings, generated, seed=3)
    monkeypatch.setattr(training._Training, "_save", whole)
    train_detector(world_folder, tmp_path / "d", settings, generated, seed=3)
    one, other = (load_detector(folder)[0].module.state_dict() for folder in (detector, tmp_path / "d"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_test_split_is_not_read(detector, world_folder, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(world_folder, data)
    (data / "test.json").write_text("not json")
    train_detector(data, tmp_path / "d", SETTINGS)
    assert (tmp_path / "d" / "model.safetensors").is_file()


def test_pictures_become_a_dataset_of_what_was_found(detector, world_folder, tmp_path):
    pictures = tmp_path / "pictures"
    (pictures / "deep").mkdir(parents=True)
    val = read_dataset(world_folder, "val")
    for place, image in zip(("a.png", "deep/b.png"), val.images, strict=False):
        Image.open(val.image_path(image)).save(pictures / place)
    (pictures / "broken.jpg").write_bytes(b"no picture")
    found = detect(pictures, detector, tmp_path / "found", score=0.0)
    assert found["images"] == 2 and [name for name, _ in found["refused"]] == ["broken.jpg"]
    dataset = read_dataset(tmp_path / "found", "annotations")
    assert [image.file_name for image in dataset.images] == ["a.png", "deep/b.png"]
    assert len(dataset.annotations) == found["boxes"] > 0 and dataset.categories == val.categories
    assert Image.open(tmp_path / "found" / SHEET).width > 200
    built, _ = load_detector(detector)
    expected = predict(built.module.detect, read_dataset(world_folder, "val"), built.frame)
    first = sorted(r["score"] for r in expected if r["image_id"] == val.images[0].id)
    assert sorted(a.extra["score"] for a in dataset.annotations_of(1)) == pytest.approx(first, abs=1e-4)
    with pytest.raises(DatasetError, match="is there already"):
        detect(pictures, detector, tmp_path / "found", score=0.3)


def test_mistakes_are_one_message(detector, world_folder, tmp_path):
    with pytest.raises(DatasetError, match="is no folder"):
        detect(tmp_path / "none", detector, tmp_path / "found", 0.3)
    with pytest.raises(ModelError, match="No detector in"):
        detect(world_folder / "images", tmp_path, tmp_path / "found", 0.3)
    with pytest.raises(DatasetError, match="holds a trained detector already"):
        train_detector(world_folder, detector, SETTINGS)
    bare = tmp_path / "bare"
    shutil.copytree(world_folder, bare)
    content = json.loads((bare / "train.json").read_text())
    (bare / "train.json").write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(DatasetError, match="nothing to learn from"):
        train_detector(bare, tmp_path / "d", SETTINGS)
