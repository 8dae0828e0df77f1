"""The FiftyOne App: loopback only, on the dataset's page, gone when told to."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from review_world import folders  # noqa: F401

from engine.data.world import render_scene
from engine.errors import ConfigError
from engine.sections import Settings
from tasks.app import launch_app
from tasks.fiftyone_dataset import dataset_name
from tasks.mongod import free_port, running_port
from tasks.review import review

ROOT = Path(__file__).parents[2]
# A test run in the background ignores Ctrl-C, and its children inherit that: the handler is set as in a terminal.
LAUNCH = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "import sys; from pathlib import Path; from tasks.app import launch_app;"
    "launch_app(Path(sys.argv[1]), int(sys.argv[2]), real=Path(sys.argv[3]),"
    "           announce=lambda url: print(url, flush=True))"
)


@pytest.fixture
def generated(folders, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setenv("DE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FIFTYONE_DATABASE_URI", raising=False)
    folders.generate([render_scene(seed).image for seed in (100, 101)], [1, 2], [[0.9], [0.8]])
    return folders.generated


def _get(url: str, **headers) -> tuple[bytes, dict]:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=120) as answer:
        return answer.read(), dict(answer.headers)


def _ask(base: str, name: str) -> dict:
    """The App's own question for a page's dataset, as its web page sends it."""
    query = 'query($name: String!) { dataset(name: $name, savedViewSlug: "queue") { name defaultGroupSlice } }'
    body = json.dumps({"query": query, "variables": {"name": name}}).encode()
    request = urllib.request.Request(f"{base}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def _accept(base: str, name: str) -> dict:
    """Run one of our operators, with nothing selected, as the web page does."""
    asked = {"operator_uri": "@diffusion-engine/review/accept_selected", "dataset_name": name, "params": {}}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{base}/operators/execute", json.dumps(asked).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read().splitlines()[-1])


def test_the_app_serves_the_dataset_on_loopback_only_and_stops_with_its_database(generated, folders):  # noqa: F811
    review(generated, folders.real, Settings(), fiftyone="off")
    name, port = dataset_name(generated), free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(generated), str(port), str(folders.real)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        url = process.stdout.readline().strip()
        base = f"http://127.0.0.1:{port}"
        assert url == f"{base}/datasets/{name}?view=queue"
        page, headers = _get(url, Origin="http://elsewhere.example")
        assert b"<title>FiftyOne</title>" in page
        assert "access-control-allow-origin" not in {key.lower() for key in headers}
        assert _ask(base, name)["data"]["dataset"] == {"name": name, "defaultGroupSlice": "generated"}
        assert _accept(base, name)["result"]["message"].startswith("Select generated images first"), "our operators"
        family = psutil.Process(process.pid).children(recursive=True)
        listening = [c.laddr for p in family for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
        assert port in {address.port for address in listening}
        assert {address.ip for address in listening} == {"127.0.0.1"}
        with pytest.raises(ConfigError, match=f"Port {port}"):
            launch_app(generated, port)
        with pytest.raises(ConfigError, match="is open in the App.*--collect"):
            review(generated, folders.real, Settings())
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
    assert process.returncode == 0
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert running_port(Path(os.environ["DE_HOME"]) / "mongo") is None
    with pytest.raises(urllib.error.URLError):
        _get(url)


@pytest.mark.parametrize("port", [-1, 70000])
def test_an_impossible_port_is_the_users_mistake(generated, port):
    with pytest.raises(ConfigError, match="--port"):
        launch_app(generated, port)


def test_a_taken_port_is_refused_before_anything_starts(generated, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="cannot be used"):
            launch_app(generated, taken.getsockname()[1])
    assert not (tmp_path / "home").exists()
