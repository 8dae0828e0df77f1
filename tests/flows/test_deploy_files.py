"""The files of docs/deploy: well-formed, on loopback, without secrets, and fitting what is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from flows.cli import app
from tasks.pool import POOL

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs" / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
UNITS = sorted(DEPLOY.glob("*.service"))
SECRET = re.compile(r"PASSWORD|AUTH|://[^/@\s]*:[^/@\s]*@")


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_service_is_pinned_and_only_loopback_listens(name):
    service = COMPOSE["services"][name]
    tag = service["image"].partition(":")[2]
    assert re.fullmatch(r"\d+\.\d+(\.\d+)?", tag)
    assert service["network_mode"] == "host" and "ports" not in service
    words = [str(word) for word in [*service["command"], *service["environment"].values()]]
    assert "0.0.0.0" not in " ".join(words)
    if name in ("postgres", "mongo", "prefect"):
        assert any("127.0.0.1" in word for word in words)
    for wanted in service.get("depends_on", {}):
        assert wanted in COMPOSE["services"]
    for volume in service.get("volumes", []):
        source = volume.partition(":")[0]
        assert source.startswith("$") or source in COMPOSE["volumes"]


def test_no_secret_is_written_down():
    text = (DEPLOY / "compose.yaml").read_text()
    values = [line.partition(": ")[2] for line in text.splitlines() if SECRET.search(line) and ": " in line]
    assert len(values) >= 6 and all("${" in value for value in values if "MONGO_INITDB_ROOT_USERNAME" not in value)
    for unit in UNITS:
        assert not SECRET.search(re.sub(r"#.*", "", unit.read_text()))


def test_versions_and_commands_are_those_of_the_project():
    services = COMPOSE["services"]
    assert services["worker"]["image"] == f"diffusion-engine:{version('diffusion-engine')}"
    assert POOL in services["worker"]["command"]
    step, *options = services["app"]["command"][1:]
    get_command(app).commands[step].make_context(step, options)  # raises on what the command would refuse
    assert POOL in (DEPLOY / "de-worker.service").read_text().partition("--pool ")[2].split()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_accepts_the_units(unit, tmp_path):
    """Only the programs are others than in the example: systemd looks whether they exist."""
    copy = tmp_path / unit.name
    copy.write_text(re.sub(r"/opt/\S+/bin/\w+", sys.executable, unit.read_text()))
    found = subprocess.run(["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True)
    told = [line for line in found.stderr.splitlines() if unit.name in line]
    assert not told and found.returncode == 0, found.stderr
