"""Review end to end on a real MongoDB: gates, decisions.json, the FiftyOne dataset, and edits on their way back."""
# ruff: noqa: F811

from __future__ import annotations

import dataclasses
import gc
import json
import os
import shutil

import numpy as np
import psutil
import pytest
from fiftyone_home import fiftyone, home  # noqa: F401
from review_world import folders  # noqa: F401

from engine.curation.decisions import load_decisions, read_decisions
from engine.curation.reviewer import recall_verdicts
from engine.data.dataset import read_dataset, write_dataset
from engine.data.world import render_scene
from engine.errors import DatasetError
from engine.sections import ReviewSettings, Settings
from tasks import fiftyone_connection, mongod
from tasks.app import ensure_loaded
from tasks.collect import collect
from tasks.fiftyone_connection import connected_fiftyone
from tasks.fiftyone_dataset import load
from tasks.review import review
from tasks.review_summary import gate_lines

SETTINGS = Settings(review=ReviewSettings(min_mean_score=0.5))


@pytest.fixture
def generated(folders):  # noqa: F811
    """Image 1 good, 2 low score, 3 duplicate of 1, 4 repeats val image 1, 5 nearly its own source."""
    pictures = [render_scene(seed).image for seed in (100, 101, 100, 10, 2)]
    folders.generate(pictures, [1, 2, 3, 4, 3], [[0.9, 0.7], [0.3], [0.9], [0.9], [0.6]])
    return folders


def _samples(fiftyone, name: str):
    return fiftyone.load_dataset(name, reload=True)


def test_review_writes_decisions_and_shows_everything(generated, fiftyone):
    summary = review(generated.generated, generated.real, SETTINGS)
    assert (summary.images, summary.accepted, summary.rejected) == (5, 2, 3)
    assert summary.reasons == {"duplicate": 1, "leakage": 1, "low_score": 1}
    dataset = read_dataset(generated.generated, "annotations")
    assert read_decisions(generated.generated, dataset) == {1, 5}

    shown = _samples(fiftyone, summary.dataset)
    assert (
        shown.persistent and shown.group_slices == ["generated", "source"] and shown.default_group_slice == "generated"
    )
    assert [set(tags) for tags in shown.values("tags")] == [
        {"accepted"},
        {"rejected", "low_score"},
        {"rejected", "duplicate"},
        {"rejected", "leakage"},
        {"accepted", "near_source"},
    ]
    sample = shown.match(fiftyone.ViewField("image_id") == 1).first()
    assert sample.seed == str(2**63 + 1), "a 64-bit seed must stay exact"
    assert sample.prompt == dataset.images[0].extra["de"]["prompt"] and sample.mode == "img2img"
    assert (sample.strength, sample.guidance_scale, sample.eta, sample.source_image_id) == (0.5, 2.0, 0.25, 1)
    boxes = [d.bounding_box for d in sample.predictions.detections]
    assert boxes == [[4 / 64, 8 / 64, 16 / 64, 20 / 64], [5 / 64, 8 / 64, 16 / 64, 20 / 64]]
    assert [d.confidence for d in sample.predictions.detections] == [0.9, 0.7]
    assert [d.label for d in sample.predictions.detections] == ["house", "car"]
    assert not any(d.iscrowd for d in sample.predictions.detections)
    beside = shown.get_group(sample.group.id)["source"]
    assert beside.filepath == sample.source_filepath == str((generated.real / "images" / "train_0.png").resolve())
    assert len(beside.ground_truth.detections) == len(render_scene(0).objects)
    counts = {view: len(shown.load_saved_view(view)) for view in shown.list_saved_views()}
    assert (
        counts | {"queue": 5, "accepted": 2, "rejected": 3, "class house": 5, "class car": 1, "class boat": 0} == counts
    )
    assert shown.load_saved_view("queue").values("mean_score")[0] == 0.3, "the weakest comes first"
    points = shown.load_brain_results("looks").points
    apart = np.linalg.norm(points[:, None] - points[None], axis=2) + np.diag([np.inf] * 5)
    assert points.shape == (5, 2) and apart[0].argmin() == 2, "a repeated image lies where the other does"


def test_points_follow_the_features_that_are_given(generated, fiftyone):
    summary = review(generated.generated, generated.real, SETTINGS)
    dataset = read_dataset(generated.generated, "annotations")
    decisions = load_decisions(generated.generated, dataset)
    verdicts = recall_verdicts(decisions, dataset)
    features = {1: np.array([0.0, 0.0, 5.0]), 2: np.array([4.0, 0.0, 5.0]), 4: np.array([0.0, 3.0, 5.0])}
    load(fiftyone, dataset, None, verdicts, decisions, {}, features)
    shown = _samples(fiftyone, summary.dataset)
    found = shown.load_brain_results("looks")
    ids = dict(zip(shown.values("id"), shown.values("image_id"), strict=True))
    points = {ids[sample_id]: point for sample_id, point in zip(found.sample_ids, found.points, strict=True)}
    assert sorted(points) == [1, 2, 4]
    assert np.linalg.norm(points[1] - points[2]) == pytest.approx(4, abs=1e-4)
    assert np.linalg.norm(points[1] - points[4]) == pytest.approx(3, abs=1e-4)


def test_what_the_gates_found_is_shown_and_outlives_the_database(generated, fiftyone):
    """Image 1 agrees with its source, 2 in half of its labels, 3 is borderline."""
    train = read_dataset(generated.real, "train")
    truth = train.annotations_of(2)
    drawn = generated.generate([render_scene(seed).image for seed in (100, 101, 102)], [1, 2, 3], [[], [], [0.52]])
    labels = [dataclasses.replace(a, extra={"score": 0.9}) for a in train.annotations_of(1)]
    labels += [dataclasses.replace(truth[0], image_id=2, extra={"score": 0.9})]
    labels += [dataclasses.replace(drawn.annotations[0], image_id=3)]
    labels = [dataclasses.replace(label, id=number) for number, label in enumerate(labels, start=1)]
    write_dataset(generated.generated, "annotations", drawn.images, labels, drawn.categories)

    summary = review(generated.generated, generated.real, SETTINGS)
    assert (summary.accepted, summary.reasons) == (2, {"borderline": 1})
    assert gate_lines(summary.gates)[0] == "Gates: 2 pass, 1 borderline (low_score 1), 0 fail."
    name = summary.dataset

    def shown(*columns: str) -> list:
        return list(zip(*_samples(fiftyone, name).values(list(columns)), strict=True))

    gates = [("pass", []), ("pass", []), ("borderline", ["low_score"])]
    assert shown("gates", "doubts") == gates
    assert shown("tags") == [(["accepted"],), (["accepted"],), (["rejected", "borderline"],)]
    scores = shown("label_agreement", "train_distance", "crowding")
    assert scores[0][0] == 1.0 and scores[1][0] == pytest.approx(2 / (1 + len(truth)), abs=1e-6)
    assert scores[0][1] > 6 and scores[0][2] is None, "three images are too few to speak of a clump"
    dataset = _samples(fiftyone, name)
    assert dataset.load_saved_view("borderline").values("image_id") == [3]
    assert dataset.load_saved_view("worst label agreement").values("image_id")[-1] == 1
    agreement = dataset.load_saved_view("worst label agreement").values("label_agreement")
    assert agreement == sorted(agreement) and len(agreement) == 3

    dataset.match(fiftyone.ViewField("image_id") == 3).tag_samples("accepted")
    assert collect(generated.generated).accepted == 3, "a person decides what is borderline"
    fiftyone.delete_dataset(name)
    assert ensure_loaded(fiftyone, generated.generated, generated.real) == name
    assert shown("gates", "doubts") == gates and shown("tags")[2] == (["accepted", "borderline", "decided"],)
    again = shown("label_agreement", "train_distance", "crowding")
    assert again[1][0] == pytest.approx(scores[1][0], abs=1e-6) and again[0] == scores[0]


def test_edits_come_back_survive_a_new_review_and_a_lost_database(generated, fiftyone):
    name = review(generated.generated, generated.real, SETTINGS).dataset
    field = fiftyone.ViewField
    shown = _samples(fiftyone, name)
    shown.match(field("image_id") == 1).tag_samples(["rejected", "blurry"])  # beside accepted
    shown.match(field("image_id") == 2).untag_samples("rejected")
    shown.match(field("image_id") == 4).tag_samples("accepted")  # a leak: not for a person to allow

    summary = collect(generated.generated)
    content = json.loads((generated.generated / "decisions.json").read_text())
    assert content["accepted"] == [2, 5] and content["rejected"]["1"] == "reviewer: blurry"
    assert set(content["rejected"]) == {"1", "3", "4"} and summary.reviewer == 2
    before = (generated.generated / "decisions.json").read_bytes()
    collect(generated.generated)
    assert (generated.generated / "decisions.json").read_bytes() == before

    # one more edit that nobody collected, then the gates run again
    shown.match(field("image_id") == 5).untag_samples("accepted")
    summary = review(generated.generated, generated.real, SETTINGS)
    assert (summary.accepted, summary.rejected, summary.reviewer) == (1, 4, 3)
    assert fiftyone.list_datasets(f"{name}*") == [name], "nothing temporary may stay"

    fiftyone.delete_dataset(name)
    with pytest.raises(DatasetError, match="not loaded in FiftyOne"):
        collect(generated.generated)
    assert ensure_loaded(fiftyone, generated.generated, generated.real) == name
    tags = dict(zip(*_samples(fiftyone, name).values(["image_id", "tags"]), strict=True))
    assert [tags[i][0] for i in range(1, 6)] == ["rejected", "accepted", "rejected", "rejected", "rejected"]
    assert "leakage" in tags[4] and "duplicate" in tags[3]


def test_changed_annotations_are_never_mixed_with_old_decisions(generated, fiftyone):
    name = review(generated.generated, generated.real, SETTINGS).dataset
    path = generated.generated / "annotations.json"
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(DatasetError, match="changed since it was loaded"):
        collect(generated.generated)
    with pytest.raises(DatasetError, match="another annotations.json"):
        ensure_loaded(fiftyone, generated.generated)
    assert review(generated.generated, generated.real, SETTINGS).dataset == name
    assert (generated.generated / "decisions.previous.json").is_file(), "a person's old work is set aside, not lost"
    assert collect(generated.generated).accepted == 2


def test_a_killed_loading_leaves_the_old_dataset_and_is_cleaned_up(generated, fiftyone, monkeypatch):
    name = review(generated.generated, generated.real, SETTINGS).dataset
    with monkeypatch.context() as patch:
        patch.setattr("tasks.fiftyone_dataset.save_views", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            review(generated.generated, generated.real, SETTINGS)
    assert sorted(fiftyone.list_datasets(f"{name}*")) == [name, f"{name}.loading"]
    assert fiftyone.load_dataset(name).count() == 5
    review(generated.generated, generated.real, SETTINGS)
    assert fiftyone.list_datasets(f"{name}*") == [name]


def test_a_generated_folder_moved_elsewhere_is_another_dataset(generated, fiftyone, tmp_path):
    first = review(generated.generated, generated.real, SETTINGS).dataset
    shutil.copytree(generated.generated, tmp_path / "copy" / "generated")
    second = review(tmp_path / "copy" / "generated", generated.real, SETTINGS).dataset
    assert first != second and {first, second} <= set(fiftyone.list_datasets())


def test_each_context_finds_a_working_connection_also_after_its_server_was_killed(generated, fiftyone, home):
    folder = home / "mongo"
    name = review(generated.generated, generated.real, SETTINGS).dataset
    server = psutil.Process(int((folder / "data" / "mongod.lock").read_text()))
    server.kill()
    psutil.wait_procs([server], timeout=10)
    assert review(generated.generated, generated.real, SETTINGS).dataset == name
    fiftyone.delete_dataset(name)
    assert name not in fiftyone.list_datasets()


def test_another_home_is_another_database(generated, fiftyone, monkeypatch, tmp_path):
    name = review(generated.generated, generated.real, SETTINGS).dataset
    with monkeypatch.context() as patch:
        patch.setenv("DE_HOME", str(tmp_path / "home"))
        with connected_fiftyone() as module:
            assert module.list_datasets() == []
            review(generated.generated, generated.real, SETTINGS)
            assert module.list_datasets() == [name]
            module.delete_dataset(name)
    assert collect(generated.generated).dataset == name


def test_a_forked_process_does_not_take_the_server_with_it(generated, fiftyone, home):
    name = review(generated.generated, generated.real, SETTINGS).dataset
    child = os.fork()
    if child == 0:
        try:
            fiftyone_connection._give_back()
            gc.collect()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert mongod.running_port(home / "mongo") and collect(generated.generated).dataset == name
