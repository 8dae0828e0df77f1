from __future__ import annotations

import shlex
from pathlib import Path

from engine.config import as_dict, load_settings
from engine.report.recipe import compare_command, settings_that_matter

SETS = ["detector.steps=7", "detector.bfloat16=true", "compare.controls=[quarter_share]", "ldm.device=cpu",
        "detector.learning_rate=3e-5", "compare.seeds=5"]  # fmt: skip


def test_the_command_gives_the_same_settings_again():
    settings = load_settings(None, SETS)
    words = shlex.split(compare_command(Path("my data"), Path("de"), Path("out"), 4, settings).replace("\\\n", " "))
    assert words[:10] == ["de", "compare", "--real", "my data", "--generated", "de", "--out", "out", "--seeds", "4"]
    assert words[10::2] == ["--set"] * (len(SETS) - 1)
    again = load_settings(None, words[11::2])
    assert again.detector == settings.detector and again.compare.controls == settings.compare.controls
    assert again.ldm.device == "cpu"


def test_defaults_need_no_words():
    assert "--set" not in compare_command(Path("a"), Path("b"), Path("c"), 3, load_settings())


def test_settings_in_plain_words_and_none_that_are_not_there():
    rows = dict(settings_that_matter(as_dict(load_settings(None, SETS))))
    assert rows["Detector"] == "small, 7 steps of 16 images, learning rate 3e-05"
    assert rows["Encode ratios"] == "0.4 to 0.8"
    assert settings_that_matter({"detector": {"name": "small"}, "compare": 3, "generation": None}) == []
