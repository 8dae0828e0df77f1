"""decisions.json: what is written comes back, and what does not fit the dataset is refused."""

from __future__ import annotations

import json

import pytest

from engine.curation.decisions import Decisions, annotations_digest, load_decisions, read_decisions, write_decisions
from engine.curation.reviewer import Shown, decide, merge_edits, recall_verdicts
from engine.curation.verdicts import Verdict
from engine.data.world import render_scene
from engine.errors import DatasetError

MADE = Decisions(frozenset({1, 3}), {2: "duplicate: repeats generated image 1", 4: "reviewer"}, {4: False, 1: True})


@pytest.fixture
def generated(folders):
    return folders.generate([render_scene(s).image for s in range(100, 104)], [1, 2, 3, 4], [[0.9]] * 4)


def test_without_a_file_every_image_is_used(generated):
    assert read_decisions(generated.folder, generated) == {1, 2, 3, 4}
    assert load_decisions(generated.folder, generated) is None


def test_round_trip_and_equal_bytes(generated):
    path = write_decisions(generated.folder, generated, MADE)
    first = path.read_bytes()
    assert load_decisions(generated.folder, generated) == MADE
    assert read_decisions(generated.folder, generated) == {1, 3}
    write_decisions(generated.folder, generated, MADE)
    assert path.read_bytes() == first
    assert json.loads(first)["digest"] == annotations_digest(generated.folder)
    assert [p.name for p in generated.folder.iterdir() if p.is_file() and p.name.startswith(".")] == []


def test_decisions_about_another_annotations_file_are_refused_with_the_cure(generated):
    write_decisions(generated.folder, generated, MADE)
    path = generated.folder / "annotations.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(DatasetError, match="another annotations.json.*Review the folder again"):
        read_decisions(generated.folder, generated)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"accepted": [1, 9]}, "9"),
        ({"rejected": {"9": "x"}}, "9"),
        ({"rejected": {"1": "x"}}, "image 1 is both"),
        ({"rejected": {"x": "y"}}, "'x'"),
        ({"accepted": [True]}, "'accepted'"),
        ({"accepted": None}, "'accepted'"),
        ({"rejected": [2]}, "'rejected'"),
        ({"reviewer": {"1": "perhaps"}}, "perhaps"),
        ({"digest": 5}, "'digest'"),
    ],
)
def test_hostile_content_is_refused_naming_the_fault(generated, change, message):
    path = write_decisions(generated.folder, generated, MADE)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DatasetError, match=message) as caught:
        read_decisions(generated.folder, generated)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "[]", '{"accepted": NaN}'])
def test_broken_files_are_refused(generated, content):
    (generated.folder / "decisions.json").write_text(content)
    with pytest.raises(DatasetError, match="decisions.json.*Review the folder again"):
        read_decisions(generated.folder, generated)


def test_unknown_ids_are_not_written(generated):
    with pytest.raises(DatasetError, match="first: 5"):
        write_decisions(generated.folder, generated, Decisions(frozenset({5}), {}))
    assert not (generated.folder / "decisions.json").exists()


VERDICTS = [
    Verdict(1, True),
    Verdict(2, False, ("low_score",), {}, "low_score: mean box score 0.1 is below 0.5"),
    Verdict(3, False, ("leakage",), {}, "leakage: repeats val image a.jpg"),
    Verdict(4, True, ("near_source",), {}, "near_source: nearly repeats its source image 4"),
]


def test_the_gates_decide_where_no_person_did():
    decisions = decide(VERDICTS)
    assert decisions.accepted == {1, 4}
    assert decisions.rejected == {2: VERDICTS[1].note, 3: VERDICTS[2].note}


def test_a_persons_word_outlives_the_gates_but_never_lets_a_leak_in():
    earlier = Decisions(frozenset({2, 3, 4}), {1: "reviewer: blurry"}, {1: False, 2: True, 3: True})
    decisions = decide(VERDICTS, earlier)
    assert decisions.accepted == {2, 4}
    assert decisions.rejected == {1: "reviewer: blurry", 3: VERDICTS[2].note}
    assert decisions.reviewer == {1: False, 2: True}


def _shown(tags_of: dict[int, list[str]], loaded: Decisions) -> list[Shown]:
    return [
        Shown(v.image_id, tuple(tags), "accepted" if v.image_id in loaded.accepted else "rejected", v.reasons, v.note)
        for v, tags in zip(VERDICTS, tags_of.values(), strict=True)
    ]


@pytest.mark.parametrize(
    "tags, accepted",
    [
        ({1: ["accepted"], 2: ["rejected"], 3: ["rejected"], 4: ["accepted"]}, {1, 4}),  # nothing touched
        ({1: ["rejected"], 2: ["accepted"], 3: ["accepted"], 4: ["accepted"]}, {2, 4}),  # swapped; the leak stays
        ({1: ["accepted", "rejected"], 2: ["rejected", "accepted"], 3: [], 4: []}, {2}),  # added, or taken away
    ],
)
def test_edited_tags_turn_decisions_round_and_collecting_twice_is_once(tags, accepted):
    loaded = decide(VERDICTS)
    once = merge_edits(_shown(tags, loaded), loaded)
    assert once.accepted == accepted and set(once.rejected) == {1, 2, 3, 4} - accepted
    assert merge_edits(_shown(tags, loaded), once) == once


def test_own_tags_become_the_reason_and_an_undone_edit_is_undone():
    loaded = decide(VERDICTS)
    untouched = {1: ["accepted"], 2: ["rejected"], 3: ["rejected"], 4: ["accepted", "near_source"]}
    edited = merge_edits(_shown(untouched | {1: ["rejected", "blurry"], 2: ["accepted"]}, loaded), loaded)
    assert edited.rejected[1] == "reviewer: blurry" and 2 not in edited.rejected
    undone = merge_edits(_shown(untouched, loaded), edited)
    assert undone.accepted == loaded.accepted and undone.rejected == loaded.rejected


def test_images_nobody_touched_keep_what_the_file_says():
    loaded = decide(VERDICTS)
    stricter = Decisions(frozenset({4}), loaded.rejected | {1: "low_score: mean box score 0.4 is below 0.5"})
    untouched = {1: ["accepted"], 2: ["rejected"], 3: ["rejected"], 4: ["accepted"]}
    assert merge_edits(_shown(untouched, loaded), stricter) == stricter


def test_decisions_remember_the_gates_reasons(generated):
    recalled = recall_verdicts(decide(VERDICTS), generated)
    assert [v.accepted for v in recalled] == [True, False, False, True]
    assert [v.reasons for v in recalled] == [(), ("low_score",), ("leakage",), ()]
    assert all(v.scores["mean_score"] == 0.9 for v in recalled)
