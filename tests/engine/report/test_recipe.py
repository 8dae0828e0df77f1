from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from engine.config import as_dict, load_settings
from engine.report.recipe import compare_command, settings_that_matter
from engine.sections import LdmSettings

SETS = ["detector.steps=7", "detector.bfloat16=true", "compare.controls=[quarter_share]", "ldm.device=cpu",
        "detector.learning_rate=3e-5", "compare.seeds=5"]  # fmt: skip


def stated(command):
    words = shlex.split(command.replace("\\\n", " "))
    first = words.index("--set")
    assert set(words[first::2]) == {"--set"}
    return words[:first], words[first + 1 :: 2]


def test_the_command_gives_the_same_settings_again_whatever_goes_without_saying(tmp_path):
    settings = load_settings(None, SETS)
    command = compare_command(Path("my data"), Path("de"), Path("out"), 4, settings)
    words, sets = stated(command)
    assert words == ["de", "compare", "--real", "my data", "--generated", "de", "--out", "out", "--seeds", "4"]
    assert max(map(len, command.splitlines())) <= 124
    other = tmp_path / "params.yaml"
    other.write_text("detector: {steps: 99, width: 32}\ncompare: {generated_share: 0.1}\nldm: {device: cuda}\n")
    for params in (None, other):
        again = load_settings(params, sets)
        assert again.detector == settings.detector and again.ldm.device == "cpu"
        assert dataclasses.replace(again.compare, seeds=5) == settings.compare


def test_the_command_has_the_further_arms_and_the_model_of_the_search():
    model = LdmSettings("my model")
    words, sets = stated(compare_command(Path("a"), Path("b"), Path("c"), 3, load_settings(), {"more": "d"}, model))
    assert words[-4:] == ["--arm", "more=d", "--ldm", "my model"]
    assert {"ldm.resolution=512", 'ldm.dtype="float32"'} < set(sets), "the model may recommend others"


def test_the_model_of_the_search_for_leaks_is_the_same_again():
    """As it was opened: a model's own recommendations need not be the settings of the rest."""
    settings = load_settings(None, ["ldm.dtype=float16", "ldm.resolution=96", "ldm.revision=abc"])
    unsearched = compare_command(Path("a"), Path("b"), Path("c"), 3, settings)
    read = {one.partition("=")[0] for one in stated(unsearched)[1]}
    assert not {"ldm.dtype", "ldm.resolution"} & read
    model = LdmSettings("hub/model", revision="1e5f", resolution=256, dtype="bfloat16")
    words, sets = stated(compare_command(Path("a"), Path("b"), Path("c"), 3, settings, None, model))
    assert words[-2:] == ["--ldm", "hub/model"]
    again = load_settings(None, sets).ldm
    assert (again.revision, again.resolution, again.dtype) == ("1e5f", 256, "bfloat16")


def test_settings_in_plain_words_and_none_that_are_not_known():
    results = {"settings": as_dict(load_settings(None, SETS)), "generated": {}}
    rows = dict(settings_that_matter(results))
    assert rows["Detector"] == "small, 7 steps of 16 images, learning rate 3e-05"
    # how the images were drawn is what the generation says, never what the comparison's own settings hold
    assert "Encode ratios" not in rows and "Diffusion model" not in rows
    drawn = {"ldm": {"id": "mine"}, "strength_min": 0.2, "strength_max": 0.5}
    rows = dict(settings_that_matter(results | {"generated": {"drawn_with": drawn}}))
    assert (rows["Encode ratios"], rows["Diffusion model"]) == ("0.2 to 0.5", "mine")
    assert settings_that_matter({"settings": {"detector": {"name": "small"}, "compare": 3}, "generated": {}}) == []
