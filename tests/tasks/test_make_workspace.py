"""`de init`: real git, real DVC, a small rendered dataset; no model is run."""

from __future__ import annotations

import inspect
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from engine.config import load_settings
from engine.data.dataset import read_dataset, splits_of
from engine.data.world import render_scene
from engine.data.world_folder import write_world
from engine.errors import ConfigError, DatasetError, ModelError, RunFailed
from engine.ldm import embedded_folder
from flows.cli import app
from tasks.make_workspace import make_workspace
from tasks.stages import read_stage

HOSTILE = "a\"b: #c '; touch PWNED; ${HOME} `touch PWNED` 😀\n- d"


def run(folder: Path, *words: str) -> str:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "world"
    write_world(folder, 9, 3, 4)
    (folder / "images" / "stray.txt").write_text("no part of the dataset")
    return folder


@pytest.fixture(scope="module")
def made(world, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "ws"
    make_workspace(folder, world, domain=HOSTILE)
    return folder


@pytest.fixture
def place(tmp_path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def test_everything_is_committed_and_dvc_holds_the_dataset(made, world):
    assert sorted(path.name for path in made.parent.iterdir()) == ["ws"]
    assert run(made, "git", "status", "--porcelain") == ""
    assert run(made, "git", "log", "--format=%s").splitlines() == ["Start of the workspace"]
    tracked = run(made, "git", "ls-files").splitlines()
    assert "data/real.dvc" in tracked and not [name for name in tracked if name.startswith("data/real/")]
    assert "up to date" in run(made, sys.executable, "-m", "dvc", "status", "data/real.dvc")
    assert read_dataset(made / "data" / "real", "train").digest() == read_dataset(world, "train").digest()
    assert splits_of(made / "data" / "real") == ["train", "val", "test"]
    assert not (made / "data" / "real" / "images" / "stray.txt").exists()


def test_dvc_reads_the_stages_in_their_order(made):
    stages = run(made, sys.executable, "-m", "dvc", "stage", "list", "--name-only").split()
    assert stages == ["adapt-ldm", "train-adapter", "generate", "compare", "pool"]
    status = run(made, sys.executable, "-m", "dvc", "status")
    assert all(name in status for name in stages)


def test_every_stage_is_a_step_with_known_settings_and_no_text_for_a_shell(made):
    stages = yaml.safe_load((made / "dvc.yaml").read_text())["stages"]
    params = yaml.safe_load((made / "params.yaml").read_text())
    for stage in stages.values():
        for command in stage["cmd"] if isinstance(stage["cmd"], list) else [stage["cmd"]]:
            assert not set(command) & set("$`;&|<>\"'\\")
            step, *options = shlex.split(command)[1:]
            get_command(app).commands[step].make_context(step, options)
        for name in stage.get("params", ()):
            section, _, key = name.partition(".")
            assert section in params and (not key or key in params[section])  # DVC refuses a missing one


def test_a_persons_words_are_kept_as_they_are_and_read_by_nobody_else(made):
    settings = load_settings(made / "params.yaml")
    assert settings.generation.domain == HOSTILE
    assert HOSTILE not in (made / "dvc.yaml").read_text() and not (made / "PWNED").exists()
    assert (settings.ldm.id, settings.ldm.resolution) == ("world", 64)


@pytest.mark.parametrize(
    ("number", "stage"),
    [(0, "adapt-ldm"), (0, "train-adapter"), (1, "generate"), (2, "compare"), (3, "pool")],
)
def test_a_deployments_run_does_the_work_of_its_stage(made, number, stage):
    from prefect.flows import load_flow_from_entrypoint

    entry, wanted = yaml.safe_load((made / "prefect.yaml").read_text())["deployments"][number], read_stage(made, stage)
    flow = load_flow_from_entrypoint(entry["entrypoint"], use_placeholder_flow=False)
    inspect.signature(flow.fn).bind(**entry["parameters"])
    given = {"out": "pool", **entry["parameters"]}  # the nights have no option for that: they take the stage's
    if stage == "adapt-ldm":  # as the flow records it
        given = {"data": given["data"], "ldm": given["base"], "out": given["ldm"]}
    compared = {name: given[name] for name in wanted.comparable(wanted.options)}
    assert wanted.comparable(compared) == wanted.comparable(wanted.options)


def test_a_diffusion_model_in_a_folder_of_any_name_is_named_by_its_whole_path(world, place, monkeypatch):
    name = 'm"; touch PWNED; ${x}'
    for file in ("model_index.json", "unet/config.json", "vae/config.json"):
        (place / name / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(embedded_folder() / file, place / name / file)
    monkeypatch.chdir(place)
    made = make_workspace(Path("ws"), world, ldm=name)
    settings = load_settings(place / "ws" / "params.yaml")
    assert settings.ldm.id == str(place / name) and not made.values.small
    deployment = yaml.safe_load((place / "ws" / "prefect.yaml").read_text())["deployments"][0]
    assert deployment["parameters"]["base"] == str(place / name)
    assert read_stage(place / "ws", "adapt-ldm").comparable({})["ldm"] == str(place / name)
    assert name not in (place / "ws" / "dvc.yaml").read_text()


def test_a_foreign_format_is_imported_and_missing_splits_are_set_aside(world, place):
    from engine.data.export import ExportOptions, export_dataset

    export_dataset(world, place / "voc", "voc", ExportOptions())
    for split in ("val", "test"):
        (place / "voc" / "ImageSets" / "Main" / f"{split}.txt").unlink()
    made = make_workspace(place / "ws", place / "voc")
    real = place / "ws" / "data" / "real"
    assert f"Imported voc from {place / 'voc'} to {real}" in made.data and ".partial" not in made.data
    assert {"val", "test"} <= set(splits_of(real)) and "Set aside" in made.data
    assert run(place / "ws", "git", "status", "--porcelain") == ""


def test_an_empty_folder_stays_the_same_folder(world, place):
    before = place.stat().st_ino
    make_workspace(place, world)
    assert place.stat().st_ino == before and run(place, "git", "status", "--porcelain") == ""
    assert not place.with_name("place.partial").exists()


def test_git_that_does_not_know_its_user_is_no_error(world, place, monkeypatch):
    (place / "gitconfig").write_text("[user]\n\tuseConfigOnly = true\n")
    for name in [name for name in os.environ if name.startswith(("GIT_", "EMAIL"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(place / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    assert not make_workspace(place / "ws", world).has_identity
    assert run(place / "ws", "git", "log", "--format=%an <%ae>") == "de init <de-init@localhost>\n"
    assert "de init" not in (place / "ws" / ".git" / "config").read_text()


def test_it_is_made_in_a_git_hook_too(world, place, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(place / "other"))
    make_workspace(place / "ws", world)
    assert (place / "ws" / ".git").is_dir() and not (place / "other").exists()


def test_places_that_cannot_be_used_are_refused_before_anything_is_made(world, place):
    (place / "full").mkdir()
    (place / "full" / "mine").touch()
    for folder, words in (
        (place / "full", "not empty"),
        (place / "full" / "mine", "not empty"),
        (place / "none" / "ws", "no folder"),
        (world / "ws", "inside"),
    ):
        with pytest.raises(ConfigError, match=words):
            make_workspace(folder, world)
    (place / "ws.partial").mkdir()
    with pytest.raises(ConfigError, match="one was killed"):
        make_workspace(place / "ws", world)
    assert sorted(path.name for path in place.iterdir()) == ["full", "ws.partial"]


def test_a_source_or_model_that_cannot_be_used_leaves_nothing_behind(world, place):
    before = sorted(place.iterdir())
    with pytest.raises(DatasetError, match="no source"):
        make_workspace(place / "ws", place / "nowhere")
    with pytest.raises(ModelError):
        make_workspace(place / "ws", world, ldm="nowhere")
    with pytest.raises(ModelError, match="revision"):
        make_workspace(place / "ws", world, ldm="owner/name")
    with pytest.raises(ConfigError, match="--revision"):
        make_workspace(place / "ws", world, revision="abc")
    with pytest.raises(DatasetError, match="its own"):
        make_workspace(place / "ws", world, test=0.5)
    assert sorted(place.iterdir()) == before


def test_a_damaged_dataset_folder_leaves_nothing_behind(world, place):
    shutil.copytree(world, place / "damaged")
    picture = next((place / "damaged" / "images").glob("*.png"))
    picture.write_bytes(picture.read_bytes()[:100])
    with pytest.raises(DatasetError, match=picture.name):
        make_workspace(place / "ws", place / "damaged")
    assert [path.name for path in place.iterdir()] == ["damaged"]


def test_without_a_test_split_there_is_nothing_to_compare(world, place):
    shutil.copytree(world, place / "data")
    (place / "data" / "test.json").unlink()
    with pytest.raises(DatasetError, match="no test images"):
        make_workspace(place / "ws", place / "data", test=0)


def test_a_git_that_fails_leaves_nothing_behind(world, place, monkeypatch):
    git = shutil.which("git")
    (place / "bin").mkdir()
    (place / "bin" / "git").write_text(
        f'#!/bin/sh\ncase "$*" in *commit*) echo full >&2; exit 5;; esac\nexec {git} "$@"\n'
    )
    (place / "bin" / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}")
    for folder in (place / "ws", place / "empty"):
        if folder.name == "empty":
            folder.mkdir()
        with pytest.raises(RunFailed, match="first commit.*5.*full"):
            make_workspace(folder, world)
    assert sorted(path.name for path in place.iterdir()) == ["bin", "empty"] and not list((place / "empty").iterdir())


def test_pictures_without_labels_join_and_are_drawn_from(world, place, tmp_path):
    (tmp_path / "bare").mkdir()
    for seed in (1, 2):
        render_scene(seed).image.save(tmp_path / "bare" / f"{seed}.png")
    made = make_workspace(place / "ws", world, unlabelled=tmp_path / "bare")
    assert "2 pictures without labels were added" in made.data
    assert len(read_dataset(made.folder / "data" / "real", "unlabelled").images) == 2
    settings = load_settings(made.folder / "params.yaml").generation
    assert settings.unlabelled and settings.prompt == "none"
    with pytest.raises(DatasetError, match="no folder"):
        make_workspace(place / "other", world, unlabelled=tmp_path / "none")
    assert not (place / "other").exists()
