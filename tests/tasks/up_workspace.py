"""A workspace with a tiny flow, and the real `de up` at work in it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from tasks.ports import HOST, free_port
from tasks.server import api_url, healthy

ROOT = Path(__file__).parents[2]
DE = str(Path(sys.executable).with_name("de"))
FLOW = """
import os, time
from pathlib import Path
from prefect import flow
@flow
def tiny(name: str, seconds: float = 0):
    Path(f"{name}-started").touch()
    time.sleep(seconds)
    Path(name).write_text(os.getcwd())
"""
DEPLOYMENTS = """
deployments:
  - name: default
    entrypoint: tiny.py:tiny
    work_pool: {name: gpu}
  - name: nightly
    entrypoint: tiny.py:tiny
    work_pool: {name: gpu}
    parameters: {name: night}
    schedules: [{cron: "0 3 * * *", timezone: Europe/Berlin, active: true}]
"""


@dataclass
class Running:
    """A `de up` at work in `folder`; `said` is what it printed so far."""

    folder: Path
    port: int
    app_port: int
    process: subprocess.Popen
    said: list[str] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        return os.environ | {"PREFECT_API_URL": api_url(self.port), "PREFECT_LOGGING_LEVEL": "ERROR"}

    def wait_for_line(self, *wanted: str) -> str:
        """Read on until a line has all of these words; that line."""
        while line := self.process.stdout.readline():
            self.said.append(line)
            if all(word in line for word in wanted):
                return line
        raise AssertionError(f"de up ended: {''.join(self.said)}")

    def prefect(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """What a user types in another terminal."""
        command = [sys.executable, "-m", "prefect", *arguments]
        environment = self.environment() | environment
        return subprocess.run(command, env=environment, cwd=self.folder, check=True, capture_output=True, text=True)

    def deploy_run(self, deployment: str, *parameters: str, **environment: str) -> None:
        words = [word for parameter in parameters for word in ("-p", parameter)]
        self.prefect("deployment", "run", deployment, *words, **environment)

    def deploy_run_when_up(self, deployment: str, *parameters: str) -> None:
        wait_for(lambda: healthy(self.port), 180)
        self.deploy_run(deployment, *parameters)

    def flow_runs(self, deployment: str, state: str | None = None) -> list[dict]:
        flow, _, name = deployment.partition("/")
        body = {"deployments": {"name": {"any_": [name]}}, "flows": {"name": {"any_": [flow]}}}
        if state:
            body["flow_runs"] = {"state": {"type": {"any_": [state]}}}
        return self.post("/flow_runs/filter", body).json()

    def post(self, path: str, body: dict, headers: dict | None = None) -> httpx.Response:
        client = {"prefect-csrf-client": "test"}
        with httpx.Client(base_url=api_url(self.port), timeout=30) as http:
            token = http.get("/csrf-token", params={"client": "test"}).json()["token"]
            return http.post(path, json=body, headers=client | {"prefect-csrf-token": token} | (headers or {}))

    def child(self, word: str) -> psutil.Process:
        found = [p for p in psutil.Process(self.process.pid).children() if word in words(p)]
        assert len(found) == 1, found
        return found[0]

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self, number: int = signal.SIGTERM, seconds: float = 60) -> None:
        self.process.send_signal(number)
        self.said += self.process.communicate(timeout=seconds)[0].splitlines(keepends=True)
        assert self.process.returncode == 0, "".join(self.said)


def words(process: psutil.Process) -> list[str]:
    """The command line; empty for one that has ended."""
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def wait_for(condition, seconds=90.0):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)
    return value


def lay_out(folder: Path, deployments: str = DEPLOYMENTS) -> None:
    (folder / "tiny.py").write_text(FLOW)
    (folder / "prefect.yaml").write_text(deployments)


def environment_of(folder: Path) -> dict[str, str]:
    """Nothing of the user's Prefect or FiftyOne."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "FIFTYONE_"))}
    return own | {"DE_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}


def start(folder: Path, *options: str, port: int | None = None, **environment: str) -> Running:
    """Give the command and wait until it says that all is started."""
    made = begin(folder, *options, port=port, **environment)
    made.wait_for_line("Ctrl-C stops")
    assert f"http://{HOST}:{made.port}" in "".join(made.said)
    assert "prefect deployment run 'generate-coco-de/default' -p images=8" in "".join(made.said)
    return made


def begin(folder: Path, *options: str, port: int | None = None, **environment: str) -> Running:
    port, app_port = port or free_port(), free_port()
    command = [DE, "up", "--port", str(port), "--app-port", str(app_port), *options]
    environment = environment_of(folder) | environment
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    return Running(folder, port, app_port, process)
