"""The real `de up`: server and worker of the installed Prefect, on this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from engine.errors import ConfigError
from tasks.server import HOST, api_url, healthy, up, use_temporary_server

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
  - name: default
    entrypoint: flows.generate_coco_de.generate_coco_de
    work_pool: {name: gpu}
    parameters: {data: data, ldm: world, adapter: adapter, out: generated, images: 4}
"""


@dataclass
class Running:
    """A `de up` at work in `folder`."""

    folder: Path
    port: int
    process: subprocess.Popen

    def environment(self) -> dict[str, str]:
        return os.environ | {"PREFECT_API_URL": api_url(self.port), "PREFECT_LOGGING_LEVEL": "ERROR"}

    def deploy_run(self, deployment: str, *parameters: str) -> None:
        """What a user types in another terminal."""
        words = [word for parameter in parameters for word in ("-p", parameter)]
        command = [sys.executable, "-m", "prefect", "deployment", "run", deployment, *words]
        subprocess.run(command, env=self.environment(), check=True, stdout=subprocess.DEVNULL, cwd=self.folder)

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


def start(folder: Path, port: int) -> Running:
    (folder / "tiny.py").write_text(FLOW)
    (folder / "prefect.yaml").write_text(DEPLOYMENTS)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    process = subprocess.Popen(
        [DE, "up", "--port", str(port)], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    lines = []
    while not any("Ctrl-C stops" in line for line in lines):
        line = process.stdout.readline()
        assert line, f"de up ended: {''.join(lines)}"
        lines.append(line)
    assert f"http://{HOST}:{port}" in "".join(lines)
    assert "prefect deployment run 'generate-coco-de/default' -p images=8" in "".join(lines)
    return Running(folder, port, process)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    made = start(tmp_path_factory.mktemp("workspace"), port)
    yield made
    if made.process.poll() is None:
        made.process.terminate()
        made.process.wait(60)


def test_it_listens_on_loopback_only(running):
    family = [running.process.pid, *(p.pid for p in psutil.Process(running.process.pid).children(recursive=True))]
    listening = [c.laddr for pid in family for c in psutil.Process(pid).net_connections() if c.status == "LISTEN"]
    assert (HOST, running.port) in [tuple(address) for address in listening]
    assert {address.ip for address in listening} == {HOST}


def test_foreign_origins_get_nothing(running):
    foreign = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    answer = httpx.get(f"{api_url(running.port)}/health", headers=foreign)
    assert answer.status_code == 200 and "access-control-allow-origin" not in answer.headers
    asked = httpx.options(f"{api_url(running.port)}/flow_runs/filter", headers=foreign)
    assert "access-control-allow-origin" not in asked.headers
    # What a page can send without asking first lacks the token.
    blind = httpx.post(f"{api_url(running.port)}/flow_runs/filter", content="{}", headers={"Origin": foreign["Origin"]})
    assert blind.status_code == 403
    own = {"Origin": f"http://{HOST}:{running.port}"}
    assert running.post("/flow_runs/filter", {}, own).headers["access-control-allow-origin"] == own["Origin"]


def test_the_page_is_served(running):
    page = httpx.get(f"http://{HOST}:{running.port}/")
    assert page.status_code == 200 and "<html" in page.text.lower()


def test_a_cron_deployment_gets_scheduled_runs(running):
    """With sqlalchemy 2.1 it never does, and nothing says so."""
    assert wait_for(lambda: running.flow_runs("tiny/nightly", "SCHEDULED"))


def test_a_deployment_runs_in_the_workspace(running):
    running.deploy_run("tiny/default", "name=ran")
    done = running.folder / "ran"
    wait_for(done.exists)
    assert Path(done.read_text()).samefile(running.folder)
    assert wait_for(lambda: running.flow_runs("tiny/default", "COMPLETED"))


@pytest.mark.slow
def test_the_real_flow_is_registered_and_a_users_mistake_fails_its_run(running):
    running.deploy_run("generate-coco-de/default", "images=8")
    (run,) = wait_for(lambda: running.flow_runs("generate-coco-de/default", "FAILED"), 180)
    assert run["parameters"]["images"] == 8 and run["parameters"]["out"] == "generated"
    assert "DatasetError" in run["state"]["message"] or "ModelError" in run["state"]["message"]


@pytest.mark.slow
def test_a_run_that_died_with_worker_and_server_gives_its_slot_back(running):
    running.deploy_run("tiny/default", "name=silent", "seconds=900")
    wait_for((running.folder / "silent-started").exists)
    time.sleep(5)  # its first heartbeat
    family = psutil.Process(running.process.pid).children(recursive=True)
    for process in family:
        process.kill()
    running.deploy_run_when_up("tiny/default", "name=next")
    wait_for((running.folder / "next").exists, 400)  # it waited for the slot of the dead one
    (crashed,) = running.flow_runs("tiny/default", "CRASHED")
    assert crashed["parameters"]["name"] == "silent" and "heartbeat" in crashed["state"]["message"]


def test_what_dies_is_started_again_and_all_stops_on_sigterm(running):
    """Last in this file: it ends the server."""
    running.child("worker").kill()
    said = running.process.stdout.readline()
    assert "The worker had died" in said
    running.deploy_run("tiny/default", "name=long", "seconds=600")
    wait_for((running.folder / "long-started").exists)
    family = psutil.Process(running.process.pid).children(recursive=True)
    assert any("prefect.engine" in words(p) for p in family)
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 0
    wait_for(lambda: not any(words(p) for p in family), 10)
    # The next `de up` frees the slot that the interrupted run held.
    again = start(running.folder, running.port)
    try:
        assert len(again.flow_runs("tiny/default", "CRASHED")) == 1
        assert not again.flow_runs("tiny/default", "RUNNING")
        again.deploy_run("tiny/default", "name=after")
        wait_for((running.folder / "after").exists)
        assert (running.folder / ".prefect").stat().st_mode & 0o777 == 0o700
    finally:
        again.process.send_signal(signal.SIGINT)
        assert again.process.wait(60) == 0


def test_a_taken_port_and_a_missing_file_are_the_users_business(tmp_path):
    (tmp_path / "prefect.yaml").write_text(DEPLOYMENTS)
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        with pytest.raises(ConfigError, match="cannot be used"):
            up(tmp_path, taken.getsockname()[1])
    with pytest.raises(ConfigError, match="No .*prefect.yaml"):
        up(tmp_path / "nowhere", 4999)
    assert not (tmp_path / ".prefect").exists()


DIRECT = """
import sys
from pathlib import Path
from tasks.server import use_temporary_server
use_temporary_server(Path("home"))
from prefect import flow, task
from prefect.client.orchestration import get_client

@task
def double(x):
    return 2 * x

@flow
def direct():
    return double(21)

assert direct() == 42
import time
with get_client(sync_client=True) as client:
    for _ in range(100):  # task runs arrive as events
        if (runs := client.read_task_runs()) and runs[0].state_name == "Completed":
            break
        time.sleep(0.1)
    print(client.read_flow_runs()[0].state_name, runs[0].state_name, client.api_url.host)
"""


def test_a_temporary_server_is_private_complete_and_ends_with_its_process(tmp_path):
    (tmp_path / "prefect.toml").write_text('[api]\nurl = "http://127.0.0.1:1/api"\n')  # a workspace's: not for us
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment |= {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path / "user")}
    done = subprocess.run(
        [sys.executable, "-c", DIRECT], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"Completed Completed {HOST}\n", "")
    assert (tmp_path / "home" / ".gitignore").read_text() == "*\n" and (tmp_path / "home" / "prefect.db").exists()
    assert not (tmp_path / "user").exists()
    assert not [p for p in psutil.process_iter() if str(tmp_path) in " ".join(words(p))]


def test_a_server_that_the_user_named_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://server.example/api")
    before = dict(os.environ)
    use_temporary_server(tmp_path / "home")
    assert os.environ == before and not (tmp_path / "home").exists()
