"""Validation finds everything at once, and nothing on a sound folder."""

import json
import shutil

import pytest
from PIL import Image
from tiny_data import make_folder, make_picture, sound_document

from engine.data.validate import Finding, validate_dataset
from engine.errors import DatasetError


def _of(findings: list[Finding], words: str) -> list[Finding]:
    return [f for f in findings if words in str(f)]


def test_a_sound_folder_has_no_findings(tmp_path):
    assert validate_dataset(make_folder(tmp_path, sound_document())) == []


def test_nothing_stops_at_the_first_problem(tmp_path):
    document = sound_document()
    document["annotations"][0]["id"] = 0
    document["annotations"][1]["bbox"] = [0, 0, 0, 0]
    document["images"].append({"id": 8, "file_name": "missing.png", "width": 1, "height": 1})
    document["images"].append({"id": 9, "file_name": "../x.png", "width": 1, "height": 1})
    folder = make_folder(tmp_path, document)
    make_picture(folder / "images" / "sub" / "b.png", size=(20, 10))
    (folder / "val.json").write_text("{")
    findings = validate_dataset(folder)
    for words in ("ids start at 1", "no area", "no such file", "leaves the dataset folder", "val.json", "20 x 10"):
        assert len(_of(findings, words)) >= 1, words
    assert all(f.advice or "de import" in f.what or "Run" in f.what for f in findings if f.severity == "error")
    severities = [f.severity for f in findings]
    assert severities == sorted(severities)


@pytest.mark.parametrize("break_it", ["cut", "text", "size"])
def test_pictures_are_decoded(tmp_path, break_it):
    folder = make_folder(tmp_path, sound_document())
    path = folder / "images" / "a.png"
    if break_it == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    elif break_it == "text":
        path.write_text("no picture")
    else:
        make_picture(path, size=(41, 30))
    (finding,) = validate_dataset(folder)
    assert finding.severity == "error" and finding.where == "train.json image 1 (a.png)"
    assert "train.json image 1 (a.png)" in str(finding)


def test_objects_labelled_twice(tmp_path):
    document = sound_document()
    base = {**document["annotations"][2], "bbox": [0, 0, 10, 10], "area": 100}
    document["annotations"] = [
        *document["annotations"][:2],
        {**base, "id": 10},
        {**base, "id": 11, "bbox": [0, 0, 10, 9]},  # IoU 0.9, the same class
        {**base, "id": 12, "bbox": [0, 0, 10, 9], "category_id": 90},  # another class
        {**base, "id": 13, "bbox": [0, 0, 10, 9.5], "iscrowd": 1},  # a region
        {**base, "id": 14, "bbox": [20, 0, 10, 10]},
        {**base, "id": 15, "bbox": [20, 0, 10, 8]},  # IoU exactly 0.8
    ]
    (finding,) = validate_dataset(make_folder(tmp_path, document))
    assert finding.severity == "warning"
    assert "annotations 10 and 11, both RBC, overlap by IoU 0.90" in finding.what


def test_images_and_classes_without_boxes(tmp_path):
    document = sound_document()
    document["annotations"] = document["annotations"][:1]
    findings = validate_dataset(make_folder(tmp_path, document))
    assert len(findings) == 2
    assert _of(findings, "1 of 2 images have no boxes: sub/b.png")
    assert _of(findings, "classes without boxes: RBC")


def test_one_picture_in_two_splits_leaks(tmp_path):
    document = sound_document()
    folder = make_folder(tmp_path, document)
    document["images"] = [{**document["images"][0], "file_name": "copy.png"}]
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] == 1]
    (folder / "test.json").write_text(json.dumps(document))
    shutil.copy(folder / "images" / "a.png", folder / "images" / "copy.png")
    (finding,) = validate_dataset(folder)
    assert "same picture in several splits" in finding.what
    assert "train.json (a.png)" in finding.where and "test.json (copy.png)" in finding.where


def test_categories_must_agree_between_splits(tmp_path):
    document = sound_document()
    folder = make_folder(tmp_path, document)
    document["categories"][0]["name"] = "red"
    document["images"][0]["file_name"], document["images"][1]["file_name"] = "c.png", "d.png"
    for number, name in enumerate("cd"):
        make_picture(folder / "images" / f"{name}.png", seed=10 + number)
    (folder / "val.json").write_text(json.dumps(document))
    (finding,) = validate_dataset(folder)
    assert finding.severity == "error" and finding.where == "val.json" and "categories" in finding.what


def test_blank_and_unnamed_pictures(tmp_path):
    folder = make_folder(tmp_path, sound_document())
    Image.new("RGB", (40, 30), (7, 7, 7)).save(folder / "images" / "a.png")
    make_picture(folder / "images" / "left.png")
    findings = validate_dataset(folder)
    assert len(findings) == 2 and {f.severity for f in findings} == {"warning"}
    assert _of(findings, "almost one colour") and _of(findings, "left.png")


def test_folders_that_are_none(tmp_path):
    with pytest.raises(DatasetError, match="no dataset folder"):
        validate_dataset(tmp_path / "none")
    (finding,) = validate_dataset(tmp_path)
    assert finding.severity == "error" and "de import" in finding.advice
