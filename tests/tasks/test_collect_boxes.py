"""Boxes edited in FiftyOne come back as decisions.jsonl, and return when the database is lost; on a real MongoDB."""

from __future__ import annotations

import json

import pytest
from fiftyone_home import fiftyone, home  # noqa: F401
from review_world import folders  # noqa: F401

from engine.curation.training_labels import training_labels
from engine.data.dataset import read_dataset
from engine.data.world import render_scene
from engine.errors import DatasetError
from engine.sections import Settings
from tasks.app import ensure_loaded
from tasks.collect import collect
from tasks.review import review


@pytest.fixture
def generated(folders):  # noqa: F811
    """Image 1 with the annotations 1 (house) and 2 (car), image 2 with 3 (house)."""
    folders.generate([render_scene(seed).image for seed in (100, 101)], [1, 2], [[0.9, 0.7], [0.8]])
    return folders


def sample_of(fiftyone, name: str, image_id: int):  # noqa: F811
    dataset = fiftyone.load_dataset(name, reload=True)
    return dataset.match(fiftyone.ViewField("image_id") == image_id).first()


def edit(fiftyone, name: str) -> None:  # noqa: F811
    """As the App does: move and relabel one box, delete one, draw one."""
    sample = sample_of(fiftyone, name, 1)
    house = sample.predictions.detections[0]
    house.bounding_box, house.label = [0.25, 0.25, 0.5, 0.5], "boat"
    drawn = fiftyone.Detection(label="car", bounding_box=[0.1, 0.7, 0.333, 0.2])
    sample.predictions.detections = [house, drawn]
    sample.save()


def boxes_in(fiftyone, name: str, image_id: int) -> list:  # noqa: F811
    detections = sample_of(fiftyone, name, image_id).predictions.detections
    return [(d.label, [round(64 * value, 3) for value in d.bounding_box]) for d in detections]


EDITED = [("boat", [16, 16, 32, 32]), ("car", [6.4, 44.8, 21.312, 12.8])]


def test_edits_come_back_once_reach_training_and_survive_a_lost_database(generated, fiftyone):  # noqa: F811
    name = review(generated.generated, generated.real, Settings()).dataset
    path = generated.generated / "decisions.jsonl"
    assert collect(generated.generated).edited == 0 and not path.exists()
    edit(fiftyone, name)
    assert collect(generated.generated, "Ada").edited == 1
    (line,) = path.read_text().splitlines()
    entry = json.loads(line)
    assert entry["image_id"] == 1 and entry["reviewer"] == "Ada" and entry["removed"] == [2]
    assert entry["changed"] == [{"id": 1, "category": "boat", "bbox": [16, 16, 32, 32], "iscrowd": 0}]
    assert entry["added"] == [{"id": 4, "category": "car", "bbox": [6.4, 44.8, 21.312, 12.8], "iscrowd": 0}]
    before = path.read_bytes()
    collect(generated.generated)
    assert path.read_bytes() == before, "collecting twice equals once"

    dataset = read_dataset(generated.generated, "annotations")
    labels = training_labels(generated.generated, dataset).annotations_of(1)
    assert [a.bbox_xywh for a in labels] == [(16, 16, 32, 32), (6.4, 44.8, 21.312, 12.8)]

    fiftyone.delete_dataset(name)
    assert ensure_loaded(fiftyone, generated.generated, generated.real) == name
    assert boxes_in(fiftyone, name, 1) == EDITED
    raw = sample_of(fiftyone, name, 1).predictions_raw.detections
    assert [d.label for d in raw] == ["house", "car"]
    collect(generated.generated)
    assert path.read_bytes() == before, "what was loaded with its edits is collected as the same edits"

    fiftyone.delete_dataset(name)
    assert review(generated.generated, generated.real, Settings()).edited == 1
    assert boxes_in(fiftyone, name, 1) == EDITED and boxes_in(fiftyone, name, 2) == [("house", [4, 8, 16, 20])]
    assert path.read_bytes() == before


def test_ignore_regions_are_apart_and_come_back_as_what_they_were_made(generated, fiftyone):  # noqa: F811
    path = generated.generated / "annotations.json"
    content = json.loads(path.read_text())
    content["annotations"][1]["iscrowd"] = 1  # the car
    path.write_text(json.dumps(content))
    name = review(generated.generated, generated.real, Settings()).dataset
    sample = sample_of(fiftyone, name, 1)
    assert [d.label for d in sample.predictions.detections] == ["house"]
    (car,) = sample.ignored.detections
    assert car.label == "car" and collect(generated.generated).edited == 0
    car.iscrowd = False  # it is a car after all
    drawn = fiftyone.Detection(label="boat", bounding_box=[0.5, 0.5, 0.25, 0.25])
    sample.ignored.detections = [car, drawn]
    sample.save()
    assert collect(generated.generated).edited == 1
    entry = json.loads((generated.generated / "decisions.jsonl").read_text())
    assert [(box["id"], box["iscrowd"]) for box in entry["changed"]] == [(2, 0)] and not entry["removed"]
    assert [(box["category"], box["iscrowd"]) for box in entry["added"]] == [("boat", 1)]


def test_a_new_review_keeps_edits_that_nobody_collected(generated, fiftyone):  # noqa: F811
    name = review(generated.generated, generated.real, Settings()).dataset
    edit(fiftyone, name)
    assert review(generated.generated, generated.real, Settings()).edited == 1
    assert boxes_in(fiftyone, name, 1) == EDITED
    sample = sample_of(fiftyone, name, 1)
    sample.predictions = sample.predictions_raw
    sample.save()
    assert collect(generated.generated).edited == 0 and not (generated.generated / "decisions.jsonl").exists()


def test_a_box_that_cannot_be_a_label_stops_collecting_and_costs_nothing(generated, fiftyone):  # noqa: F811
    name = review(generated.generated, generated.real, Settings()).dataset
    sample = sample_of(fiftyone, name, 2)
    sample.predictions.detections.append(fiftyone.Detection(label="car", bounding_box=[0.9, 0.9, 0.5, 0.5]))
    sample.save()
    before = (generated.generated / "decisions.json").read_bytes()
    fiftyone.load_dataset(name).match_tags("accepted").untag_samples("accepted")
    for again, more in ((collect, ()), (review, (generated.real, Settings()))):
        with pytest.raises(DatasetError, match="image 2 .*: a new box bbox .* sticks out.*"):
            again(generated.generated, *more)
    assert (generated.generated / "decisions.json").read_bytes() == before
    assert not (generated.generated / "decisions.jsonl").exists() and fiftyone.dataset_exists(name)


def test_the_generated_boxes_are_read_only_and_edits_of_other_annotations_are_set_aside(generated, fiftyone):  # noqa: F811
    name = review(generated.generated, generated.real, Settings()).dataset
    dataset = fiftyone.load_dataset(name, reload=True)
    assert [dataset.label_schemas[f].get("read_only") for f in ("predictions_raw", "predictions")] == [True, None]
    import fiftyone.operators as foo

    answer = foo.execute_operator("@voxel51/operators/get_label_schemas", {"dataset": dataset}).result
    assert answer["active_label_schemas"] == ["predictions", "ignored"], "what the Annotate tab asks for, and waits for"
    assert dataset.active_label_schemas == ["predictions", "ignored"]
    schema = dataset.label_schemas["predictions"]
    assert "boat" in schema["classes"] and [entry["name"] for entry in schema["attributes"]] == ["iscrowd"]
    edit(fiftyone, name)
    collect(generated.generated)
    annotations = generated.generated / "annotations.json"
    annotations.write_bytes(annotations.read_bytes() + b"\n")
    assert review(generated.generated, generated.real, Settings()).edited == 0
    assert (generated.generated / "decisions.previous.jsonl").is_file()
    assert boxes_in(fiftyone, name, 1)[0] == ("house", [4, 8, 16, 20])
