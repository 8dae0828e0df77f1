from __future__ import annotations

import dataclasses
import shutil

import pytest

from engine.adapter.thresholds import without_suppressed
from engine.baselines.attention_threshold import THRESHOLDS, choose_threshold, results_by_threshold
from engine.baselines.cross_attention import CrossAttentionSettings, label
from engine.baselines.making import make_baseline
from engine.baselines.request import BaselineRequest
from engine.config import load_settings
from engine.data.dataset import Category, read_dataset, write_dataset
from engine.data.pixels import Frame
from engine.detection.prediction import predict
from engine.errors import DatasetError
from engine.evaluation.f1 import box_scores
from engine.ldm.diffusion import load_ldm

SETTINGS = load_settings(None, ["ldm.id=world", "ldm.device=cpu", "ldm.resolution=64", "generation.domain=scene"])


@pytest.fixture(scope="module")
def ldm():
    return load_ldm("world", device="cpu")


@pytest.fixture(scope="module")
def generated(world_folder, tmp_path_factory):
    """The test scenes as generated images, with their captions as prompts."""
    folder = tmp_path_factory.mktemp("drawn") / "drawn"
    shutil.copytree(world_folder / "images", folder / "images")
    test = read_dataset(world_folder, "test")
    images = [dataclasses.replace(i, extra={"de": {"prompt": i.extra["caption"]}}) for i in test.images]
    write_dataset(folder, "annotations", images, [], test.categories)
    return folder


def words(val):
    """The prompts that are expected, spelled out here once more."""
    names = {c.id: c.name for c in val.categories}

    def of(record):
        held = {a.category_id for a in val.annotations_of(record.id)}
        return f"A scene, with {', '.join(names[i] for i in sorted(held))} in the scene"

    return of


def labels_at(ldm, data, threshold, text_of):
    settings, classes = CrossAttentionSettings(threshold=threshold), [c.name for c in data.categories]
    detect = lambda pixels, texts: label(ldm, pixels, texts, classes, settings)  # noqa: E731
    return predict(detect, data, Frame(64, ldm.alignment), text_of=text_of)


def test_every_threshold_gives_what_the_labeller_gives_at_it(ldm, world_folder):
    val = read_dataset(world_folder, "val")
    frame = Frame(64, ldm.alignment)
    results = results_by_threshold(ldm, val, frame, CrossAttentionSettings(), words(val), 32)
    assert tuple(results) == THRESHOLDS and len({len(found) for found in results.values()}) > 1
    for threshold in (THRESHOLDS[0], THRESHOLDS[4]):
        assert results[threshold] == labels_at(ldm, val, threshold, words(val))


def test_the_one_with_the_best_f1_on_the_words_of_the_images_own_classes_is_chosen(ldm, world_folder):
    val, settings = read_dataset(world_folder, "val"), CrossAttentionSettings()
    chosen, tried = choose_threshold(ldm, val, Frame(64, ldm.alignment), settings, SETTINGS.generation, 32)
    iou = SETTINGS.generation.suppress_iou
    expected = {
        t: box_scores(val, without_suppressed(labels_at(ldm, val, t, words(val)), iou))["f1"] for t in THRESHOLDS
    }
    assert tried["tried"] == {f"{t:g}": f1 for t, f1 in expected.items()}
    assert len(set(expected.values())) > 1 and tried["f1"] == max(expected.values()) == expected[chosen.threshold]
    assert dataclasses.replace(chosen, threshold=settings.threshold) == settings
    assert (tried["threshold"], tried["iou"], tried["images"]) == (chosen.threshold, 0.5, 6)


def test_the_chosen_threshold_labels_and_stands_in_the_manifest(world_folder, generated, tmp_path, monkeypatch):
    fixed = BaselineRequest(tmp_path / "fixed", SETTINGS, generated=generated)
    assert make_baseline("attention", fixed)[0]["chosen"] == {"threshold": 0.5}
    # Not 0.5: the labels must be seen to change.
    monkeypatch.setattr("engine.baselines.attention_threshold.THRESHOLDS", (0.7, 0.9))
    request = dataclasses.replace(fixed, out=tmp_path / "chosen", data=world_folder)
    manifest, _ = make_baseline("attention", request)
    assert manifest["chosen"]["threshold"] in (0.7, 0.9) and set(manifest["chosen"]["tried"]) == {"0.7", "0.9"}
    assert manifest["data"] == read_dataset(world_folder, "val").digest()
    first, second = (read_dataset(tmp_path / name, "annotations") for name in ("fixed", "chosen"))
    assert [a.bbox_xywh for a in first.annotations] != [a.bbox_xywh for a in second.annotations]
    assert make_baseline("attention", request) == (manifest, True)


def test_validation_images_that_cannot_serve_are_refused(world_folder, generated, tmp_path):
    val = read_dataset(world_folder, "val")
    shutil.copytree(world_folder / "images", tmp_path / "val" / "images")
    request = BaselineRequest(tmp_path / "out", SETTINGS, tmp_path / "val", generated)
    with pytest.raises(DatasetError, match="no split 'val'"):
        make_baseline("attention", request)
    write_dataset(tmp_path / "val", "val", val.images, [], val.categories)
    with pytest.raises(DatasetError, match="holds no object"):
        make_baseline("attention", request)
    others = [*val.categories, Category(99, "owl", "")]
    write_dataset(tmp_path / "val", "val", val.images, val.annotations, others)
    with pytest.raises(DatasetError, match="lists other classes"):
        make_baseline("attention", request)
    assert not request.out.exists()
