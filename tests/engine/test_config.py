import json
from pathlib import Path

import pytest

from engine.config import as_dict, digest, load_settings, settings_from
from engine.errors import ConfigError


def test_later_layers_win(tmp_path):
    (tmp_path / "engine.json").write_text(json.dumps({"settings": {"generation": {"steps": 20, "eta_max": 0.2}}}))
    (tmp_path / "params.yaml").write_text("generation:\n  eta_max: 0.3\n")
    settings = load_settings(tmp_path / "params.yaml", ["generation.score_threshold=0.45"], tmp_path)
    generation = settings.generation
    assert (generation.steps, generation.eta_max, generation.score_threshold) == (20, 0.3, 0.45)
    assert generation.guidance_min == 7.5  # the paper's
    assert load_settings(None, ["adapter.learning_rate=1e-4"]).adapter.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("generation.nonsense=1", "unknown key 'generation.nonsense'"),
        ("nonsense.steps=1", "unknown section 'nonsense'"),
        ("generation=1", "write section.key=value"),
        ("generation.steps=many", "must be int"),
        ("generation.steps=true", "must be int"),
        ("generation.steps=0", "at least 1"),
        ("generation.strength_max=1.5", "at most 1.0"),
        ("generation.eta_max=.nan", "finite"),
        ("generation.strength_min=0.9", "above generation.strength_max"),
        ("generation.ignore_threshold=0.5", "above"),
        ("adapter.head=yolo", "one of fcos, retinanet"),
        ("detector.width=48", "multiple of 32"),
        ("compare.controls=equal_real", "list of words"),
        ("review.accept_borderline=perhaps", "must be bool"),
        ("review.borderline_bits=1.5", "must be int"),
        ("review.borderline_margin=0.6", "at most 0.5"),
        ("review.clump_share=0", "at least 0.01"),
        ("review.min_label_agreement=2", "at most 1.0"),
        ("generation.class_weights=[owl=2, cat=1, owl=3]", "gives 'owl' 2 weights"),
        ("generation.size_weights=[small=2, small=3]", "gives 'small' 2 weights"),
        ("generation.size_weights=[tiny=2]", "there is no size 'tiny', only small, medium, large"),
        ("generation.size_weights=[small]", "write SIZE=WEIGHT"),
        ("generation.styles=" + "[" * 5000, "not readable"),
        ("generation.styles=[" + "fog," * 65_537 + "]", "at most 65536"),
    ],
)
def test_mistakes_are_named(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_settings(None, [override])
    assert override.split("=")[0].split(".")[0] in str(caught.value)


@pytest.mark.parametrize("text", ["[1, 2", "- a\n- b\n", "generation: 3\n", "generation:\n  x: &a [*a]\n"])
def test_unusable_files_are_refused(tmp_path, text):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ConfigError, match="params.yaml"):
        load_settings(tmp_path / "params.yaml")


def test_a_file_from_before_a_setting_was_there_gets_its_default():
    content = as_dict(load_settings(None, ["review.min_mean_score=0.4"]))
    content["review"] = {"min_mean_score": 0.4, "duplicate_distance": 2}
    assert settings_from(content, "plan.json") == load_settings(None, ["review.min_mean_score=0.4"])


def test_a_digest_follows_values_and_not_their_order():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})
    assert digest(load_settings()) == digest(load_settings()) != digest(load_settings(None, ["generation.steps=9"]))


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[2] / "params").glob("*.yaml")), ids=lambda f: f.stem)
def test_the_settings_files_of_the_recipes_can_be_read(file):
    load_settings(file)
