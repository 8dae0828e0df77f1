"""The real `de up`: server, worker and MongoDB of the installed packages, on this machine."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

import httpx
import psutil
import pytest
from up_workspace import DEPLOYMENTS, lay_out, start, wait_for, words

from engine.errors import ConfigError
from tasks.mongod import running_port
from tasks.ports import HOST, free_port
from tasks.server import api_url
from tasks.up import UpRequest, up

REAL_FLOW = """
  - name: default
    entrypoint: flows.generate_coco_de.generate_coco_de
    work_pool: {name: gpu}
    parameters: {data: data, ldm: world, adapter: adapter, out: generated, images: 4}
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    lay_out(folder, DEPLOYMENTS + REAL_FLOW)
    made = start(folder)
    yield made
    if made.process.poll() is None:
        made.process.terminate()
        made.process.wait(60)


def test_each_service_is_told_with_its_state_and_address(running):
    assert running.wait_for_line("server: running", f"http://{HOST}:{running.port}")
    assert running.wait_for_line("worker: running", "pool gpu")
    assert running.wait_for_line("mongod: running", f"{HOST}:{running_port(running.folder / 'home' / 'mongo')}")
    assert running.wait_for_line("app: waits for a generated dataset")
    assert running.wait_for_line("flow tiny/nightly: next at")


def test_it_listens_on_loopback_only(running):
    family = [running.process.pid, *(p.pid for p in running.family())]
    listening = [c.laddr for pid in family for c in psutil.Process(pid).net_connections() if c.status == "LISTEN"]
    wanted = {running.port, running_port(running.folder / "home" / "mongo")}
    assert wanted <= {address.port for address in listening}
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
    assert running.wait_for_line("flow tiny/default: completed")


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
    for process in running.family():
        process.kill()
    running.deploy_run_when_up("tiny/default", "name=next")
    wait_for((running.folder / "next").exists, 400)  # it waited for the slot of the dead one
    (crashed,) = running.flow_runs("tiny/default", "CRASHED")
    assert crashed["parameters"]["name"] == "silent" and "heartbeat" in crashed["state"]["message"]


def test_what_dies_is_started_again_and_all_stops_on_sigterm(running):
    """Last in this file: it ends the server."""
    home = running.folder / "home" / "mongo"
    port, database = running_port(home), int((home / "data" / "mongod.lock").read_text())
    psutil.Process(database).kill()
    running.wait_for_line("The mongod had died")
    running.wait_for_line("mongod: running", f"{HOST}:{port}", "(restarts: 1)")  # where its clients look for it
    running.child("worker").kill()
    running.wait_for_line("The worker had died")
    running.deploy_run("tiny/default", "name=long", "seconds=600")
    wait_for((running.folder / "long-started").exists)
    family = running.family()
    assert any("prefect.engine" in words(p) for p in family)
    running.stop(signal.SIGTERM)
    wait_for(lambda: not any(words(p) for p in family), 10)
    assert running_port(home) is None
    # The next `de up` frees the slot that the interrupted run held.
    again = start(running.folder, "--no-app", port=running.port)
    try:
        assert len(again.flow_runs("tiny/default", "CRASHED")) == 1
        assert not again.flow_runs("tiny/default", "RUNNING")
        again.deploy_run("tiny/default", "name=after")
        wait_for((running.folder / "after").exists)
        assert (running.folder / ".prefect").stat().st_mode & 0o777 == 0o700
        assert running_port(home) is None and "mongod" not in "".join(again.said)
    finally:
        again.stop(signal.SIGINT)


def test_a_taken_port_and_a_missing_file_are_the_users_business(tmp_path):
    (tmp_path / "prefect.yaml").write_text(DEPLOYMENTS)

    def refused(words: str, **request):
        with pytest.raises(ConfigError, match=words):
            up(UpRequest(**{"workspace": tmp_path, "port": free_port()} | request), show=print)

    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(f"Port {port} .*cannot be used.*give --port", port=port)
        refused(f"Port {port} .*give --app-port, or --no-app", app_port=port)
        refused("--app .*annotations.json", app_port=free_port(), shown=tmp_path)
    refused("No .*prefect.yaml", workspace=tmp_path / "nowhere")
    assert not (tmp_path / ".prefect").exists()
