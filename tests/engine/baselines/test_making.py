from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
from typer.testing import CliRunner

from engine.baselines.making import BASELINES, make_baseline
from engine.baselines.request import BaselineRequest
from engine.config import load_settings
from engine.data.dataset import read_dataset, write_dataset
from engine.errors import ConfigError, DatasetError
from engine.evaluation.compare import compare
from engine.generation.integrity import check_unchanged
from flows.cli import app

SETS = [
    *("detector.steps=3", "detector.batch_size=4", "detector.width=32", "detector.convs=1", "ldm.device=cpu"),
    *("ldm.resolution=64", "generation.score_threshold=0.0", "generation.ignore_threshold=0.0", "ldm.id=world"),
    *("generation.steps=2", "generation.guidance_min=1.0", "generation.guidance_max=1.0", "compare.seeds=2"),
    *("generation.keep_negatives=true", "compare.leakage='off'", "compare.bootstrap=10"),
]
SETTINGS = load_settings(None, SETS)


@pytest.fixture(scope="module")
def generated(world_folder, tmp_path_factory):
    """Two validation scenes as generated images, with their captions as prompts."""
    folder = tmp_path_factory.mktemp("drawn") / "drawn"
    shutil.copytree(world_folder / "images", folder / "images")
    val = read_dataset(world_folder, "val")
    images = [dataclasses.replace(i, extra={"de": {"prompt": i.extra["caption"]}}) for i in val.images[:2]]
    write_dataset(folder, "annotations", images, [], val.categories)
    return folder


def request_of(name, world_folder, generated, out, **changed):
    needs = {"data": world_folder, "generated": generated, "images": 3}
    given = {field: needs[field] for field in BASELINES[name].needs}
    return BaselineRequest(**{"out": out, "settings": SETTINGS, **given, **changed})


@pytest.mark.parametrize("name", BASELINES)
def test_each_is_made_whole_with_a_manifest_and_made_once(name, world_folder, generated, tmp_path):
    request = request_of(name, world_folder, generated, tmp_path / "out")
    manifest, before = make_baseline(name, request)
    made, counts = read_dataset(request.out, "annotations"), manifest["counts"]
    assert not before and manifest == json.loads((request.out / "manifest.json").read_bytes())
    assert sorted(path.name for path in request.out.iterdir()) == ["annotations.json", "images", "manifest.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert counts["kept"] == len(made.images) and counts["boxes"] + counts["ignored"] == len(made.annotations)
    assert counts["planned"] == counts["kept"] + sum(counts["dropped"].values())
    assert (manifest["baseline"], manifest["seed"], manifest["images"]) == (name, 0, request.images)
    assert bool(manifest["data"]) == (request.data is not None)
    assert manifest["generated"] == (request.generated and read_dataset(generated, "annotations").digest())
    check_unchanged(request.out, made.images)

    bytes_before = {path: path.read_bytes() for path in request.out.rglob("*") if path.is_file()}
    assert make_baseline(name, request) == (manifest, True)
    assert {path: path.read_bytes() for path in request.out.rglob("*") if path.is_file()} == bytes_before


def test_another_request_on_the_folder_is_refused(world_folder, tmp_path):
    request = BaselineRequest(tmp_path / "out", SETTINGS, world_folder, images=3)
    make_baseline("copy_paste", request)
    quality = load_settings(None, [*SETS, "generation.jpeg_quality=90"])
    for changed in ({"seed": 1}, {"images": 4}, {"settings": quality}):
        with pytest.raises(DatasetError, match="is there already"):
            make_baseline("copy_paste", dataclasses.replace(request, **changed))
    with pytest.raises(DatasetError, match="is there already"):
        make_baseline("inpaint", request)
    # What has no say in the outcome is no other request.
    steps = load_settings(None, [*SETS, "generation.steps=9", "detector.steps=1"])
    assert make_baseline("copy_paste", dataclasses.replace(request, settings=steps))[1]


def test_other_data_and_folders_of_others_are_refused(world_folder, tmp_path):
    shutil.copytree(world_folder, tmp_path / "data")
    request = BaselineRequest(tmp_path / "out", SETTINGS, tmp_path / "data", images=2)
    make_baseline("copy_paste", request)
    train = read_dataset(tmp_path / "data", "train")
    write_dataset(tmp_path / "data", "train", train.images, train.annotations[1:], train.categories)
    with pytest.raises(DatasetError, match="is there already"):
        make_baseline("copy_paste", request)
    for content in (None, "{", "[]", '{"counts": {}}'):
        other = tmp_path / f"other{content}"
        other.mkdir()
        if content:
            (other / "manifest.json").write_text(content)
        with pytest.raises(DatasetError, match="is there already"):
            make_baseline("copy_paste", dataclasses.replace(request, out=other))


def test_what_was_changed_since_is_not_called_finished(world_folder, tmp_path):
    request = BaselineRequest(tmp_path / "out", SETTINGS, world_folder, images=2)
    make_baseline("copy_paste", request)
    (tmp_path / "out" / "images" / "000001.jpg").write_bytes(b"junk")
    with pytest.raises(DatasetError, match="not as it was generated.*make it anew in another folder"):
        make_baseline("copy_paste", request)


def test_what_is_missing_from_a_request_is_named(world_folder, tmp_path):
    with pytest.raises(ConfigError, match="'detector' needs data and generated"):
        make_baseline("detector", BaselineRequest(tmp_path / "out", SETTINGS))
    with pytest.raises(ConfigError, match="no baseline 'mixup'.*copy_paste, inpaint"):
        make_baseline("mixup", BaselineRequest(tmp_path / "out", SETTINGS))


def test_a_run_that_failed_leaves_no_folder_and_can_be_given_again(world_folder, tmp_path, monkeypatch):
    request = BaselineRequest(tmp_path / "out", SETTINGS, world_folder, images=3)
    write = write_dataset
    monkeypatch.setattr("engine.baselines.copy_paste.write_dataset", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_baseline("copy_paste", request)
    assert not request.out.exists()
    monkeypatch.setattr("engine.baselines.copy_paste.write_dataset", write)
    assert make_baseline("copy_paste", request)[0]["counts"]["kept"] == 3


def test_a_comparison_reads_the_manifest_and_notices_changes(world_folder, tmp_path):
    request = BaselineRequest(tmp_path / "paste", SETTINGS, world_folder, images=4)
    make_baseline("copy_paste", request)
    results = compare(world_folder, request.out, tmp_path / "comparison", SETTINGS, further={"again": request.out})
    assert (results["generated"]["planned"], results["generated"]["kept"]) == (4, 4)
    assert results["generated"]["drawn_with"] == {"ldm": None, "seed": 0, "jpeg_quality": 95}
    (request.out / "images" / "000002.jpg").unlink()
    shutil.copy(request.out / "images" / "000001.jpg", request.out / "images" / "000002.jpg")
    with pytest.raises(DatasetError, match="images are not those that manifest.json tells of"):
        compare(world_folder, request.out, tmp_path / "comparison", SETTINGS)


def test_the_commands_say_what_they_made_and_that_it_was_there(world_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sets = [word for text in SETS for word in ("--set", text)]
    command = ["baseline", "inpaint", "--data", str(world_folder), "--ldm", "world", "--out", "o", "--images", "2"]
    first = CliRunner().invoke(app, [*command, *sets])
    assert first.exit_code == 0 and first.stdout.startswith("o: 2 images, ")
    images = read_dataset(tmp_path / "o", "annotations").images
    assert {image.extra["de"]["strength"] for image in images} == {0.8}
    again = CliRunner().invoke(app, [*command, *sets])
    assert again.exit_code == 0 and again.stdout == first.stdout[:-1] + (
        " This very request was finished before: nothing to do.\n"
    )
    other = CliRunner().invoke(app, [*command, *sets, "--strength", "0.5"])
    assert (other.exit_code, other.stderr) == (2, "o is there already. Give a new folder, or remove it.\n")
    assert CliRunner().invoke(app, [*command, "--strength", "1.5"]).exit_code == 2
    assert CliRunner().invoke(app, [*command, "--strength", "nan"]).exit_code == 2
