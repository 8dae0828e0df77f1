"""The FiftyOne App under the real `de up`."""

from __future__ import annotations

import json
import os
import signal
import urllib.request

import psutil
import pytest
from review_world import folders  # noqa: F401
from up_workspace import lay_out, start, wait_for, words

from engine.data.world import render_scene
from tasks.database import database
from tasks.fiftyone_dataset import dataset_name
from tasks.mongod import running_port
from tasks.ports import HOST
from tasks.shown_dataset import newest_dataset, source_of

pytestmark = pytest.mark.usefixtures("folders")


def finish(folders) -> None:  # noqa: F811
    """A generated dataset, as far as its files' names go."""
    folders.generate([render_scene(seed).image for seed in (100, 101)], [1, 2], [[0.9], [0.8]])
    (folders.generated / "manifest.json").write_text("{}")


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=30) as page:
            return b"<title>FiftyOne</title>" in page.read()
    except OSError:
        return False


def test_the_dataset_that_was_finished_last_is_shown(tmp_path):
    assert newest_dataset(tmp_path) is None
    for age, name in enumerate(("new", "nights/0001/generated", "old")):
        (tmp_path / name).mkdir(parents=True)
        for file in ("annotations.json", "manifest.json"):
            (tmp_path / name / file).write_text("{}")
            os.utime(tmp_path / name / file, (1e9 - age, 1e9 - age))
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "plan.json").write_text("{}")
    pool = {name: {} for name in "plan counts classes settings identity data seed parts".split()}
    pool |= {"annotations_sha256": "", "images_sha256": ""}
    for name, manifest in (("pool", pool), ("nights/0001/pool", pool)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "annotations.json").write_text("{}")
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
    assert newest_dataset(tmp_path) == tmp_path / "new" and source_of(tmp_path / "new") is None


@pytest.mark.slow
def test_the_app_comes_with_the_first_dataset_is_started_again_and_leaves_nothing(folders, monkeypatch):  # noqa: F811
    workspace = folders.generated.parent
    lay_out(workspace)
    running = start(workspace)
    home = workspace / "home"
    try:
        running.wait_for_line("app: waits for a generated dataset")
        finish(folders)
        address = f"http://{HOST}:{running.app_port}/datasets/{dataset_name(folders.generated)}"
        running.wait_for_line("app: running", address)
        assert answers(address)
        family = [running.process.pid, *(p.pid for p in running.family())]
        listening = [c.laddr for pid in family for c in psutil.Process(pid).net_connections() if c.status == "LISTEN"]
        assert running.app_port in {a.port for a in listening} and {a.ip for a in listening} == {HOST}
        # MongoDB dies: it comes back, and the App goes on with it. The App dies: it comes back too.
        psutil.Process(int((home / "mongo" / "data" / "mongod.lock").read_text())).kill()
        running.wait_for_line("mongod: running", "(restarts: 1)")
        app = running.child("tasks.app_server")
        assert wait_for(lambda: loaded(running.app_port, dataset_name(folders.generated)))
        app.kill()
        running.wait_for_line("The app had died")
        running.wait_for_line("app: running", address, "(restarts: 1)")
        # Another command uses the same MongoDB; it keeps it when `de up` stops.
        family = running.family()
        monkeypatch.setenv("DE_HOME", str(home))
        monkeypatch.delenv("FIFTYONE_DATABASE_URI", raising=False)
        with database():
            running.stop(signal.SIGINT, 120)
            assert running_port(home / "mongo")
    finally:
        if running.process.poll() is None:
            running.stop()
    assert running_port(home / "mongo") is None
    wait_for(lambda: not any(words(p) for p in family), 10)


@pytest.mark.slow
def test_a_mongodb_of_the_users_is_used_and_its_address_is_not_told(folders, monkeypatch, tmp_path):  # noqa: F811
    finish(folders)
    workspace = folders.generated.parent
    lay_out(workspace)
    monkeypatch.setenv("DE_HOME", str(tmp_path / "users"))
    with database() as uri:
        running = start(workspace, "--app", str(folders.generated), FIFTYONE_DATABASE_URI=uri)
        try:
            running.wait_for_line("mongod: yours FIFTYONE_DATABASE_URI")
            running.wait_for_line("app: running")
            assert loaded(running.app_port, dataset_name(folders.generated))
            assert not any("mongod" in word for process in running.family() for word in words(process))
        finally:
            running.stop()
        assert uri not in "".join(running.said) and running_port(tmp_path / "users" / "mongo")


def loaded(port: int, name: str) -> bool:
    """Does the App find the dataset in its database?"""
    query = b'{"query": "query($n: String!) { dataset(name: $n) { name } }", "variables": {"n": "%s"}}' % name.encode()
    request = urllib.request.Request(f"http://{HOST}:{port}/graphql", query, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return name.encode() in answer.read()
    except OSError:
        return False
