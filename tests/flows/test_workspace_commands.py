"""`de init`, `de status` and `de doctor` as a user types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from engine.data.world_folder import write_world
from flows.cli import app

ROOT = Path(__file__).parents[2]
TINY = {
    "adapt_ldm": {"steps": 3, "batch_size": 2, "decoder_steps": 2},
    "adapter": {"steps": 4, "batch_size": 2},
    "generation": {"steps": 4, "variants_per_image": 1, "batch_size": 4, "keep_negatives": True},
    "detector": {"steps": 3, "batch_size": 2, "width": 32, "convs": 1},
    "compare": {"seeds": 2, "bootstrap": 20, "controls": []},
}


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.setenv("DE_HOME", str(tmp_path / "home"))


def test_a_new_workspace_says_what_to_type_next_and_is_read_by_the_others(tmp_path, monkeypatch):
    monkeypatch.delenv("UV", raising=False)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    write_world(tmp_path / "w", 8, 3, 4)
    made = run("init", "my ws", "--data", "w", "--domain", "scene")
    assert made.exit_code == 0, made.output
    *_, title, first, second, third, fourth = made.stdout.splitlines()
    assert (title, first) == ("Next:", "  cd 'my ws'")
    assert second.split()[:2] == ["dvc", "repro"] and third.split()[:2] == ["de", "status"]
    assert fourth.startswith("  git add -A && git commit")
    again = run("init", "my ws", "--data", "w")
    assert (again.exit_code, again.stdout) == (2, "") and "never overwrites" in again.stderr
    shown = run("status", "my ws")
    assert shown.exit_code == 0 and "data/real" in shown.stdout and "no server" in shown.stdout
    content = json.loads(run("status", "my ws", "--json").stdout)
    assert content["found"][0]["content"]["images"] == {"train": 8, "val": 3, "test": 4}
    examined = run("doctor", "my ws")
    assert "not up to date: adapt-ldm, compare, generate, pool, train-adapter" in examined.stdout
    assert examined.stdout.splitlines()[-1].startswith("Problems: ")


def test_under_uv_run_the_next_commands_are_too(tmp_path, monkeypatch):
    monkeypatch.setenv("UV", "/usr/bin/uv")
    write_world(tmp_path / "w", 8, 3, 4)
    assert f"uv run --project {ROOT} dvc repro" in run("init", "ws", "--data", "w").stdout


def test_where_the_command_is_not_on_the_path_the_environment_is_entered_first(tmp_path, monkeypatch):
    from flows.workspace_commands import _next_commands

    monkeypatch.delenv("UV", raising=False)
    monkeypatch.setenv("PATH", "")
    assert _next_commands(Path("ws"))[0].startswith(f"source {Path(sys.executable).parent / 'activate'} && cd ws")


@pytest.mark.parametrize(
    "arguments", [["status", "nowhere"], ["doctor", "nowhere"], ["init", "ws", "--data", "nowhere"], ["init", "ws"]]
)
def test_mistakes_end_with_2_and_one_message(arguments, tmp_path):
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "") and result.stderr and "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_problem_ends_the_examination_with_1_and_names_the_cure(tmp_path):
    (tmp_path / "params.yaml").write_text("ldm: {id: world, resolution: none}\n")
    result = run("doctor")
    line = next(line for line in result.stdout.splitlines() if "params.yaml" in line)
    assert result.exit_code == 1 and line.startswith("problem") and "resolution" in line
    as_json = run("doctor", "--json")
    assert as_json.exit_code == 1 and "problem" in {check["level"] for check in json.loads(as_json.stdout)}


@pytest.mark.slow
def test_a_whole_repro_and_a_second_one_that_has_nothing_to_do(tmp_path):
    write_world(tmp_path / "w", 12, 4, 6)
    assert run("init", "ws", "--data", "w", "--domain", "scene").exit_code == 0
    workspace, params = tmp_path / "ws", yaml.safe_load((tmp_path / "ws" / "params.yaml").read_text())
    for section, values in TINY.items():
        params[section] |= values
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def dvc(*words: str) -> str:
        command = [sys.executable, "-m", "dvc", *words]
        done = subprocess.run(command, cwd=workspace, env=os.environ | {"PATH": path}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    dvc("repro")
    assert "up to date" in dvc("status")
    assert "up to date" in dvc("repro")
    content = json.loads(run("status", "ws", "--json").stdout)
    kinds = {entry["kind"]: entry for entry in content["found"]}
    assert set(kinds) == {"dataset", "ldm", "adapter", "generated", "comparison"}
    assert not [entry for entry in content["found"] if entry["problem"]]
    generated = kinds["generated"]["content"]
    assert generated["planned"] == 12 and generated["shards"] == generated["shards_done"]
    assert generated["accepted"] is not None and "mAP" in kinds["comparison"]["content"]["verdict"]
    new = subprocess.run(["git", "status", "--porcelain"], cwd=workspace, capture_output=True, text=True).stdout
    assert sorted(line[3:] for line in new.splitlines()) == ["comparison/", "dvc.lock", "params.yaml"]
