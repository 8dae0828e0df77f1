"""gates.json: every image with scores, verdict and reasons, counts that add up, equal bytes, and nothing else read."""

from __future__ import annotations

import json

import pytest

from engine.curation.gates import judge
from engine.curation.gates_file import load_gates, write_gates
from engine.data.world import render_scene
from engine.errors import DatasetError
from engine.sections import ReviewSettings

SETTINGS = ReviewSettings(min_mean_score=0.5)


@pytest.fixture
def generated(folders):
    """Image 1 good, 2 low score, 3 just above the threshold, 4 duplicate of 1, 5 low score and a leak."""
    pictures = [render_scene(seed).image for seed in (100, 101, 102, 100, 10)]
    return folders.generate(pictures, [1, 2, 3, 4, 2], [[0.9], [0.3], [0.52], [0.9], [0.2]])


def test_the_file_says_of_every_image_what_the_gates_found_and_counts_add_up(generated, folders):
    judgement = judge(generated, folders.splits(), SETTINGS)
    path = write_gates(generated.folder, judgement, SETTINGS)
    content = json.loads(path.read_text())
    assert path == generated.folder / "gates.json" and path.with_name("annotations.json").is_file()
    assert [entry["verdict"] for entry in content["images"]] == ["pass", "fail", "borderline", "fail", "fail"]
    assert content["images"][4]["reasons"] == ["leakage", "low_score"]
    assert content["images"][2]["borderline"] == ["low_score"] and not content["images"][2]["accepted"]
    assert content["images"][1]["scores"]["mean_score"] == 0.3
    assert content["counts"] == {
        "verdicts": {"pass": 1, "borderline": 1, "fail": 3},
        "fail": {"leakage": 1, "low_score": 2, "duplicate": 1},
        "borderline": {"low_score": 1},
        "tags": {},
    }
    assert content["settings"]["min_mean_score"] == 0.5 and content["features"] is None
    assert content["batch"]["outcome"] is None and "too few" in content["batch"]["note"]


def test_round_trip_and_equal_bytes(generated, folders):
    judgement = judge(generated, folders.splits(), SETTINGS)
    path = write_gates(generated.folder, judgement, SETTINGS)
    first = path.read_bytes()
    loaded = load_gates(generated.folder, generated)
    assert [(v.image_id, v.outcome, v.reasons, v.doubts, v.accepted, v.note) for v in loaded.verdicts] == [
        (v.image_id, v.outcome, v.reasons, v.doubts, v.accepted, v.note) for v in judgement.verdicts
    ]
    assert loaded.verdicts[1].scores["mean_score"] == 0.3 and loaded.counts() == judgement.counts()
    write_gates(generated.folder, judge(generated, folders.splits(), SETTINGS), SETTINGS)
    assert path.read_bytes() == first
    write_gates(generated.folder, loaded, SETTINGS)
    assert path.read_bytes() == first, "what was read is what was written"
    assert not list(generated.folder.glob(".tmp-*"))


def test_an_empty_generated_set_is_judged_and_written(folders):
    empty = folders.generate([], [], [])
    judgement = judge(empty, folders.splits(), SETTINGS)
    write_gates(empty.folder, judgement, SETTINGS)
    assert load_gates(empty.folder, empty).verdicts == () and judgement.counts()["verdicts"]["pass"] == 0


def test_without_a_file_nothing_is_known(generated):
    assert load_gates(generated.folder, generated) is None


def _change(content: dict, where: str, value) -> dict:
    if where in content:
        content[where] = value
    else:
        content["images"][1][where] = value
    return content


@pytest.mark.parametrize(
    "where, value, message",
    [
        ("annotations", "0" * 64, "another annotations.json"),
        ("annotations", 5, "'annotations'"),
        ("batch", {"outcome": "perhaps", "figures": {}, "note": ""}, "'batch'"),
        ("images", [1, 2], "'images'"),
        ("images", [], "not those of"),
        ("id", 9, "not those of"),
        ("accepted", "yes", "image 2"),
        ("reasons", ["ugly"], "image 2"),
        ("borderline", None, "image 2"),
        ("scores", {"mean_score": "high"}, "image 2"),
    ],
)
def test_hostile_content_is_refused_naming_the_fault(generated, folders, where, value, message):
    path = write_gates(generated.folder, judge(generated, folders.splits(), SETTINGS), SETTINGS)
    path.write_text(json.dumps(_change(json.loads(path.read_text()), where, value)))
    with pytest.raises(DatasetError, match=f"(?s)gates.json.*{message}.*Review the folder again"):
        load_gates(generated.folder, generated)


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "[]", '{"annotations": NaN}'])
def test_broken_files_are_refused(generated, content):
    (generated.folder / "gates.json").write_text(content)
    with pytest.raises(DatasetError, match="(?s)gates.json.*Review the folder again"):
        load_gates(generated.folder, generated)
