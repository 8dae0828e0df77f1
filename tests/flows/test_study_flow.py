"""`de study`: the cases of each preset, and one study from labels to the table."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
from typer.testing import CliRunner

from engine.data.world_folder import write_world
from engine.detection.heads import NECKS
from engine.errors import ConfigError, RunConflict
from engine.ldm import embedded_folder
from engine.sections import SMALL as SMALL_NAMES
from flows.cli import app
from flows.study import StudyRequest
from flows.study_presets import PRESETS, SIZED_DETECTORS, Case, counts
from tasks.settings import open_settings

SMALL = [
    *("adapter.steps=2", "adapter.batch_size=4", "adapter.width=32", "adapter.cache_views=1"),
    *("detector.steps=2", "detector.width=32", "detector.convs=1", "detector.batch_size=4"),
    *("generation.steps=2", "generation.score_threshold=0.01", "generation.ignore_threshold=0.01"),
    *("generation.keep_negatives=true", "compare.bootstrap=0", "review.box_count_factor=1000"),
]


def test_sizes_are_numbers_and_shares_of_what_there_is():
    assert counts(200, ["1%", "5%", "10%", "50", "150", "500"]) == [2, 10, 20, 50, 150]
    assert counts(100, ["50%", "50"]) == [50]
    with pytest.raises(ConfigError, match="ten"):
        counts(100, ["ten"])
    with pytest.raises(ConfigError, match="between 2 and the 100"):
        counts(100, ["1%", "500"])


def test_presets_say_what_each_case_may_see():
    for name, cases in PRESETS.items():
        for case in cases(200, ["10%", "200"], ["small", "small:rtdetr"]):
            seen = {"data-sparse": False, "label-scarce": True, "semi-supervised": True, "cross-domain": True}
            assert case.unlabelled is seen.get(name)
            assert case.semi == (name in ("semi-supervised", "cross-domain"))
            assert not (case.unlabelled and case.labels == 200)  # nothing is unlabelled then
    assert [c.overrides for c in PRESETS["detectors"](200, ["10%"], ["a", "small:rtdetr"])] == [
        ("detector.name=a",),
        ("detector.name=small:rtdetr", "detector.size=tiny"),
    ]
    assert {SMALL_NAMES + head for head in NECKS} == set(SIZED_DETECTORS)


def test_a_study_without_a_case_and_attention_without_words_are_refused_at_once(world, tmp_path):
    for preset, images, sizes, detectors, words in (
        ("label-scarce", 100, ["100"], ["small"], "all 100 images keep their labels"),
        ("semi-supervised", 100, ["100%"], ["small"], "all 100 images keep their labels"),
        ("detectors", 100, ["10%"], [], "write names of detectors"),
    ):
        with pytest.raises(ConfigError, match=words):
            PRESETS[preset](images, sizes, detectors)
    out = tmp_path / "out"
    refused = study("neighbours", "--real", world, "--out", out, "--sizes", "4", "--set", "generation.prompt=none")
    assert refused.exit_code == 2 and "generation.prompt is none" in refused.output and not out.exists()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "world"
    write_world(folder, 8, 3, 3, seed=3)
    return folder


def request_of(folder, overrides=(), ldm="world", **changes):
    values = {"preset": "data-sparse", "real": folder, "target": None, "out": folder / "out", "times": 1.0, "seed": 0}
    values |= {"fit": False, "seeds": 2, **changes}
    return StudyRequest(**values, open_settings=lambda more: open_settings(None, (*overrides, *more), ldm))


def study(*arguments):
    settings = [word for text in SMALL for word in ("--set", text)]
    return CliRunner().invoke(app, ["study", *map(str, arguments), "--ldm", "world", "--seeds", "2", *settings])


@pytest.mark.slow
def test_a_study_runs_from_labels_to_the_table_and_does_nothing_twice(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = study("semi-supervised", "--real", world, "--out", "out", "--sizes", "50%", "--times", "0.5")
    assert first.exit_code == 0, first.output
    rows = json.loads((tmp_path / "out" / "study.json").read_text())["rows"]
    assert [(row["case"], row["train_images"], row["arm"]) for row in rows] == [
        ("4 labels", 4, "real+de"),
        ("4 labels", 4, "semi"),
    ]
    assert "| 4 labels | 4 |" in first.output and (tmp_path / "out" / "study.html").is_file()
    drawn = json.loads((tmp_path / "out" / "generated" / "4-all" / "manifest.json").read_text())
    assert drawn["counts"]["planned"] == 4  # half as many as the 8 pictures that it may draw from
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    made |= {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("seed-*.json")}
    again = study("semi-supervised", "--real", world, "--out", "out", "--sizes", "50%", "--times", "0.5")
    assert again.exit_code == 0, again.output
    assert {path: path.stat().st_mtime_ns for path in made} == made
    other = study("semi-supervised", "--real", world, "--out", "out", "--sizes", "50%", "--times", "2")
    assert other.exit_code == 2 and "holds a study with other times" in other.output


def test_a_study_is_of_the_weights_of_its_model_and_of_every_split(world, tmp_path):
    import flows.study as steps

    copy, model = tmp_path / "world", tmp_path / "model"
    shutil.copytree(world, copy)
    shutil.copytree(embedded_folder(), model)
    request = request_of(copy, target=world, out=tmp_path / "out", ldm=model)
    steps._claim(request)
    steps._claim(request)
    splits = {split: (copy / f"{split}.json").read_bytes() for split in ("train", "val", "test")}
    for split, content in splits.items():
        pictures = json.loads(content)
        pictures["annotations"][0]["bbox"][2] -= 1
        (copy / f"{split}.json").write_text(json.dumps(pictures))
        with pytest.raises(RunConflict, match=f"holds a study with other real {split}[.]"):
            steps._claim(request)
        with pytest.raises(RunConflict, match=f"other .*target {split}"):
            steps._claim(dataclasses.replace(request, real=world, target=copy))
        (copy / f"{split}.json").write_bytes(content)
    shutil.copyfile(copy / "val.json", copy / "unlabelled.json")
    with pytest.raises(RunConflict, match="with other real unlabelled[.]"):
        steps._claim(request)
    (copy / "unlabelled.json").unlink()
    (model / "unet" / "config.json").write_text((model / "unet" / "config.json").read_text() + "\n")
    with pytest.raises(RunConflict, match="with other weights of the model[.]"):
        steps._claim(request)


def test_a_folder_that_an_earlier_version_made_is_refused_in_one_message(world, tmp_path):
    import flows.study as steps

    (tmp_path / "request.json").write_text(json.dumps({"preset": "data-sparse", "real": "0", "model": "world"}))
    with pytest.raises(RunConflict, match="of an earlier version, which did not note its real train, real val"):
        steps._claim(request_of(world, out=tmp_path))


def test_the_arms_of_pretraining_come_beside_those_that_the_user_asked_for(tmp_path, monkeypatch):
    import engine.evaluation.compare
    import flows.study as steps

    given = []
    monkeypatch.setattr(engine.evaluation.compare, "compare", lambda *a, **named: given.append(a[3].compare.controls))
    for name in ("_adapter", "_generated", "_dataset"):
        monkeypatch.setattr(steps, name, lambda *a: tmp_path)
    request = request_of(tmp_path, ("compare.controls=[permuted, pretrained]",), preset="pretrain")
    for case in PRESETS["pretrain"](200, ["10%"], []):
        steps._run_case(request, case, print)
    assert given == [("permuted", "pretrained", "generated_first")]


def test_every_case_searches_for_leaks_with_the_model_that_it_draws_with(tmp_path, monkeypatch):
    import engine.evaluation.compare
    import flows.study as steps

    given = []
    monkeypatch.setattr(engine.evaluation.compare, "compare", lambda *a, **named: given.append(named["ldm"]) or {})
    monkeypatch.setattr(steps, "_adapter", lambda *a: tmp_path)
    monkeypatch.setattr(steps, "_generated", lambda *a: tmp_path)
    monkeypatch.setattr(steps, "_fitted", lambda *a: str(tmp_path / "fitted"))
    for fit in (False, True):
        steps._run_case(request_of(tmp_path, fit=fit), Case("all"), print)
    assert [(ldm.id, ldm.resolution) for ldm in given] == [("world", 64), (str(tmp_path / "fitted"), 64)]


def test_what_is_drawn_for_another_domain_names_it_and_a_fit_learns_its_words(world, tmp_path, monkeypatch):
    import engine.evaluation.compare
    import engine.ldm.adapt
    import flows.study as steps

    drawn, fitted = [], []
    monkeypatch.setattr(engine.evaluation.compare, "compare", lambda *a, **named: {})
    monkeypatch.setattr(engine.ldm.adapt, "adapt_ldm", lambda *a: fitted.append((a[3].generation.style, a[4])))
    monkeypatch.setattr(steps, "_adapter", lambda *a: tmp_path)
    monkeypatch.setattr(steps, "_generated", lambda *a: drawn.append(a[5].generation.style) or tmp_path)
    sketch = tmp_path / "sketch"
    shutil.copytree(world, sketch)
    given = {"target": sketch, "preset": "cross-domain", "out": tmp_path / "out", "fit": True}
    for overrides, style, words in (
        ((), None, "sketch"),
        ((), "pencil drawing", "pencil drawing"),
        (("generation.style=ink",), None, "ink"),
        (("generation.style=ink",), "", ""),
        (("generation.prompt=none",), None, ""),
    ):
        request = request_of(world, overrides, style=style, **given)
        steps._run_case(request, Case("across", unlabelled=True), print)
        assert drawn.pop() == words and fitted.pop() == ("", words)
        assert steps._style(request, request.open_settings(())[1]) == words
    steps._run_case(request_of(world, ("generation.style=ink",), out=tmp_path / "one", fit=True), Case("all"), print)
    assert drawn == ["ink"] and fitted == [("ink", None)]


def test_pictures_without_labels_are_drawn_from_as_the_preset_or_else_the_user_says(world, tmp_path, monkeypatch):
    import engine.evaluation.compare
    import flows.study as steps

    drawn = []
    monkeypatch.setattr(engine.evaluation.compare, "compare", lambda *a, **named: {})
    monkeypatch.setattr(steps, "_adapter", lambda *a: tmp_path)
    monkeypatch.setattr(steps, "_generated", lambda *a: drawn.append(a[5].generation.unlabelled) or tmp_path)
    for wanted in (False, True):
        request = request_of(world, (f"generation.unlabelled={str(wanted).lower()}",), out=tmp_path / "out")
        for preset, seen in ((None, wanted), (False, False), (True, True)):
            steps._run_case(request, Case("one", unlabelled=preset), print)
            assert drawn.pop() is seen


def test_what_makes_no_sense_is_said_in_one_message(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, words in (
        (("nonsense",), "write one of data-sparse"),
        (("cross-domain",), "--target DIR"),
        (("pretrain", "--target", world), "--target is for cross-domain: de study pretrain does not"),
        (("pretrain", "--style", "ink"), "--style is for cross-domain: de study pretrain does not"),
        (("pretrain", "--detectors", "small"), "--detectors is for detectors: de study pretrain does not"),
        (("detectors", "--sizes", "10%"), "--sizes is for data-sparse, label-scarce"),
        (("cross-domain", "--target", world, "--sizes", "10%"), "--sizes is for data-sparse"),
        (("pretrain", "--sizes", "x"), "--sizes x"),
    ):
        result = study(*arguments, "--real", world, "--out", "out")
        assert result.exit_code == 2 and words in result.output and "Traceback" not in result.output
    assert not (tmp_path / "out").exists()
