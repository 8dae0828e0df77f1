"""dvc.yaml, params.yaml, prefect.yaml and prefect.toml of the repository fit the command, the flows and each other."""

from __future__ import annotations

import inspect
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from engine.config import load_settings
from flows.cli import app
from tasks.pool import POOL
from tasks.server import api_url
from tasks.settings import open_settings
from tasks.stages import read_stage

ROOT = Path(__file__).parents[2]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


def commands(stage: dict) -> list[str]:
    return stage["cmd"] if isinstance(stage["cmd"], list) else [stage["cmd"]]


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_is_a_step_with_known_settings_and_no_text_for_a_shell(name):
    stage, settings = STAGES[name], load_settings(ROOT / "params.yaml")
    for command in commands(stage):
        assert not set(command) & set("$`;&|<>\"'\\")
        step, *options = shlex.split(command)[1:]
        get_command(app).commands[step].make_context(step, options)  # raises on what the step would refuse
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section in stage.get("params", ()):
        assert hasattr(settings, section) and section in params  # DVC refuses a missing one


def test_outputs_that_grow_are_not_deleted_before_a_run():
    for name in ("adapt-ldm", "train-adapter", "generate", "pool"):
        assert all(flags["persist"] for output in STAGES[name]["outs"] for flags in output.values())


@pytest.mark.parametrize(("deployment", "stage"), [(0, "train-adapter"), (1, "generate"), (2, "compare"), (3, "pool")])
def test_a_deployments_run_does_the_work_of_its_stage(deployment, stage):
    """Else no run of it could be recorded."""
    entry, wanted = DEPLOYMENTS[deployment], read_stage(ROOT, stage)
    given = {"out": "pool", **entry["parameters"]}  # the nights have no option for that: they take the stage's
    compared = {name: given[name] for name in wanted.comparable(wanted.options)}
    assert wanted.comparable(compared) == wanted.comparable(wanted.options)


def test_the_comparison_knows_the_model_that_it_searches_for_leaks_with_and_keeps_the_settings_of_the_workspace():
    stage = read_stage(ROOT, "compare")
    assert stage.options["ldm"] == "models/ldm" and "models/ldm" in STAGES["compare"]["deps"]
    assert stage.settings == open_settings(folder=ROOT)[1] and "ldm" in stage.sections


def test_deployments_are_flows_that_take_their_parameters():
    from prefect.flows import load_flow_from_entrypoint

    names = []
    for entry in DEPLOYMENTS:
        flow = load_flow_from_entrypoint(entry["entrypoint"], use_placeholder_flow=False)
        inspect.signature(flow.fn).bind(**entry["parameters"])
        assert entry["work_pool"]["name"] == POOL
        names.append(f"{flow.name}/{entry['name']}")
    assert names == ["train-adapter/default", "generate-coco-de/default", "compare/default", "scale-up/nightly"]


@pytest.mark.parametrize("file", ["prefect.yaml", "tasks/new_workspace/prefect.yaml.j2"])
def test_the_nights_run_only_once_they_are_switched_on(file):
    nightly = yaml.safe_load((ROOT / file).read_text().replace("{{", "").replace("}}", ""))["deployments"][-1]
    assert nightly["schedules"] == [{"cron": "0 3 * * *", "timezone": "UTC", "active": False}]


def test_prefect_commands_in_the_workspace_reach_the_server_of_de_up():
    assert tomllib.loads((ROOT / "prefect.toml").read_text())["api"]["url"] == api_url(4200)


def test_ci_runs_the_test_command_of_the_readme():
    script, readme = (ROOT / ".ci" / "run").read_text(), (ROOT / "README.md").read_text()
    for command in ("python3 -m pip install", "uv run pytest"):
        assert command in script and command in readme
    assert "set -euo pipefail" in script and (ROOT / ".ci" / "run").stat().st_mode & 0o100
