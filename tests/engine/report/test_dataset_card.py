"""CARD.md: what it says, that strangers' words stay words, and that the checks of the folder know it."""

from __future__ import annotations

import json

import pytest

from engine.data.licence import NOT_STATED, stated_licence
from engine.errors import DatasetError
from engine.generation.card_mark import CARD, card_problem
from engine.report.dataset_card import card_text, write_card

MANIFEST = {
    "plan": "ab" * 32,
    "seed": 3,
    "data": "cd" * 32,
    "annotations_sha256": "1" * 64,
    "images_sha256": "2" * 64,
    "counts": {
        "planned": 12,
        "kept": 9,
        "dropped": {"no boxes": 2},
        "failed": {"MemoryError": 1},
        "boxes": 40,
        "ignored": 3,
        "dropped_boxes": {"below the thresholds": 7},
    },
    "classes": [
        {"id": 1, "name": "RBC", "images": 9, "boxes": 38, "ignored": 3},
        {"id": 2, "name": "WBC", "images": 2, "boxes": 2, "ignored": 0},
        {"id": 4, "name": "platelet", "images": 0, "boxes": 0, "ignored": 0},
    ],
    "settings": {"generation": {"steps": 20, "thresholds": "fixed", "score_threshold": 0.3, "ignore_threshold": 0.2}},
    "identity": {
        "ldm": {
            "id": "ldm",
            "weights_sha256": "e" * 64,
            "adapted_from": {"id": "world", "weights_sha256": "f" * 64},
        },
        "adapter": {
            "weights_sha256": "a" * 64,
            "validation": {
                "images": 50,
                "map": 0.41,
                "map50": 0.7,
                "map75": None,
                "per_class": {"RBC": 0.5, "WBC": 0.1, "platelet": None},
            },
        },
    },
}


@pytest.fixture
def folder(tmp_path):
    def write(**changes):
        out = tmp_path / "generated"
        out.mkdir(exist_ok=True)
        (out / "manifest.json").write_text(json.dumps(MANIFEST | changes))
        return out

    return write


def test_it_says_what_came_of_the_plan_and_how_good_the_labels_are(folder, tmp_path):
    (tmp_path / "bccd").mkdir()
    (tmp_path / "bccd" / "LICENSE").write_text("MIT License\n\nCopyright (c) 2017 shenggan\n\nPermission is ...")
    text = card_text(folder(), "coco-de-v3", tmp_path / "bccd", None, None)
    assert "planned 12 = kept 9 + dropped 2 + failed 1" in text
    assert "| RBC | 9 | 38 | 3 |" in text and "| dropped: no boxes | 2 |" in text and "below the thresholds | 7" in text
    assert "MIT License, Copyright (c) 2017 shenggan (LICENSE)" in text and NOT_STATED in text
    assert "| all classes | 41.0 | 70.0 | - |" in text and "| WBC | 10.0 | | |" in text
    assert "label from score 0.3 on" in text and "generation.steps | 20" in text.replace("\\", "")
    for fault in ("is weak (AP below 20) in: WBC (10.0)", "without a single object: platelet", "Not reviewed"):
        assert fault in text
    assert str(tmp_path) not in text


def test_thresholds_of_classes_and_the_review(folder):
    identity = json.loads(json.dumps(MANIFEST["identity"]))
    identity["adapter"] |= {"thresholds": {"1": 0.4, "2": None}, "validation": None}
    out = folder(identity=identity, settings={"generation": {"thresholds": "per_class", "ignore_threshold": 0.2}})
    decisions = {"accepted": [1, 2], "rejected": {"3": "duplicate: repeats 1"}, "reviewer": {"2": "accepted"}}
    (out / "decisions.json").write_text(json.dumps(decisions))
    text = card_text(out, "x-v1", None, None, None)
    assert "| RBC | 0.400 | - | - |" in text and "| WBC | never | - | - |" in text
    assert "accepted by review | 2 |" in text and "rejected by review: duplicate | 1 |" in text
    assert "not measured" in text and "no person" not in text


def test_names_of_others_stay_words(folder):
    name = "a|b`\n# head <script>[x](javascript:1)"
    text = card_text(
        folder(classes=[{"id": 1, "name": name, "images": 1, "boxes": 1, "ignored": 0}]), "x-v1", *[None] * 3
    )
    assert "\n# head" not in text and "<script>" not in text.replace("\\<script\\>", "") and "a\\|b\\`" in text


def test_equal_folders_give_equal_cards_and_a_handwritten_one_stays(folder):
    out = folder()
    path = write_card(out, "x-v1", None, None, None)
    before = path.read_bytes(), path.stat().st_mtime_ns
    write_card(out, "x-v1", None, None, None)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert card_problem(out, "1" * 64) is None and "another" in card_problem(out, "3" * 64)
    path.write_text("my own words")
    assert write_card(out, "x-v1", None, None, None) is None and path.read_text() == "my own words"
    assert card_problem(out, "3" * 64) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"plan": 1}'])
def test_a_broken_manifest_is_one_message(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DatasetError, match="manifest.json is not readable"):
        write_card(tmp_path, "x-v1", None, None, None)
    assert not (tmp_path / CARD).exists()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("COPYING.txt", "\n===\nGNU GPL\n", "GNU GPL (COPYING.txt)"),
        ("README.md", "---\nlicense: openrail++\n---\n", "license: openrail++ (README.md)"),
        ("README.md", "# Data\n\n## License\n\nCC BY 4.0\n", "CC BY 4.0 (README.md)"),
        ("README.md", "# Data\n", NOT_STATED),
        ("notes.txt", "license: MIT", NOT_STATED),
    ],
)
def test_a_licence_is_quoted_from_where_it_stands(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    assert stated_licence(tmp_path) == said


def test_no_folder_states_no_licence(tmp_path):
    assert stated_licence(None) == stated_licence(tmp_path / "none") == NOT_STATED
