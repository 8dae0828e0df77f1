from __future__ import annotations

import shlex
from pathlib import Path

from engine.config import as_dict, load_settings
from engine.report.recipe import compare_command, settings_that_matter
from engine.sections import LdmSettings

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
    searched = compare_command(
        Path("a"), Path("b"), Path("c"), 3, load_settings(), {"more": "d"}, LdmSettings("my model")
    )
    words = shlex.split(searched.replace("\\\n", " "))
    assert words[-8:-4] == ["--arm", "more=d", "--ldm", "my model"]
    assert words[-3::2] == ["ldm.resolution=512", 'ldm.dtype="float32"'], "the model may recommend others"


def test_the_model_of_the_search_for_leaks_is_the_same_again():
    """As it was opened: a model's own recommendations need not be the settings of the rest."""
    settings = load_settings(None, ["ldm.dtype=float16", "ldm.resolution=96", "ldm.revision=abc"])
    unsearched = compare_command(Path("a"), Path("b"), Path("c"), 3, settings)
    assert "--set" not in unsearched  # without a search nothing reads them
    model = LdmSettings("hub/model", revision="1e5f", resolution=256, dtype="bfloat16")
    words = shlex.split(compare_command(Path("a"), Path("b"), Path("c"), 3, settings, None, model).replace("\\\n", " "))
    assert words[words.index("--ldm") + 1] == "hub/model"
    again = load_settings(None, words[words.index("--set") + 1 :: 2]).ldm
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
