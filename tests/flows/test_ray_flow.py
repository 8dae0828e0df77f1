"""The flow on a real Ray cluster of several nodes; only the drawer is a stand-in."""
# ruff: noqa: F811

from __future__ import annotations

import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
from generation_workspace import ROOT, STAND_IN, Workspace, last_flow_state, workspace  # noqa: F401
from ray_cluster import RayCluster, drawing, wait_for, words

from engine.errors import ConfigError, RunFailed

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(scope="module")
def cluster():
    if find_spec("ray") is None:  # not importorskip: the environment below must be there before the import
        pytest.skip("Ray is not installed (uv sync --extra ray)")
    with pytest.MonkeyPatch.context() as monkeypatch:
        made = RayCluster([str(ROOT), str(STAND_IN)], monkeypatch)
        yield made
        made.stop()


@pytest.fixture(autouse=True)
def empty(request):
    yield
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").remove_all()


def dataset(out: Path) -> dict[str, str]:
    """sha256 of every file that a user gets."""
    files = [out / "annotations.json", out / "manifest.json", *sorted((out / "images").iterdir())]
    return {str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def committed(workspace: Workspace) -> int:
    return len(list((workspace.root / "out" / "shards").glob("[0-9]*/shard.json")))


def test_a_node_is_lost_another_joins_and_the_bytes_are_those_of_one_machine(cluster, workspace):
    images = 48
    workspace.run(images=images)
    expected = dataset(workspace.root / "out")
    (workspace.root / "out").rename(workspace.root / "unbroken")
    workspace.drawn()
    first, second = cluster.add(), cluster.add()
    workspace.behave(sleep_s=0.4)

    def disturb():
        wait_for(lambda: committed(workspace) >= 2 and drawing(first) and drawing(second))
        (lost,) = drawing(first)
        cluster.kill(first)
        third = cluster.add()
        wait_for(lambda: drawing(third))
        workspace.behave()  # for processes that start from now on
        return not words(lost) and committed(workspace)

    with ThreadPoolExecutor(1) as thread:
        disturbed = thread.submit(disturb)
        counts = workspace.run(images=images, ray=cluster.address, workers=3)
        assert 2 <= disturbed.result() < 12
    assert counts["planned"] == images and not counts["failed"]
    assert dataset(workspace.root / "out") == expected
    assert set(workspace.drawn()) == set(range(1, images + 1))
    assert not [path for path in (workspace.root / "out").rglob(".*") if path.name != ".plan.lock"]
    assert last_flow_state() == "COMPLETED"


def test_a_shard_that_kills_every_worker_is_listed_and_the_others_are_kept(cluster, workspace):
    cluster.add()
    workspace.behave(die_items=[6], die_always=True)
    with pytest.raises(RunFailed, match=r"1 of 3 shards failed \(shard 1: .*ended in shard 1 \(signal 9\)"):
        workspace.run(ray=cluster.address, workers=1)
    assert sorted(path.name for path in (workspace.root / "out" / "shards").glob("0*")) == ["00000", "00002"]
    assert last_flow_state() == "FAILED"
    drawn = workspace.drawn()
    workspace.behave()
    workspace.run(ray=cluster.address, workers=1)
    assert drawn.count(5) == 3 and workspace.drawn() == [5, 6, 7, 8]


def test_no_cluster_and_no_ray_are_the_users_business(workspace, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="Ray is not installed. `uv sync --extra ray`"):
        workspace.run(ray="auto")
    assert last_flow_state() == "FAILED"
