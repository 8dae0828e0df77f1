"""The flow on a real Ray cluster of several nodes; only the drawer is a stand-in."""
# ruff: noqa: F811

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
from generation_workspace import FAST, ROOT, STAND_IN, Workspace, last_flow_state, wait_for, workspace  # noqa: F401
from ray_cluster import RayCluster, drawing, words

from engine.config import load_settings
from engine.errors import ConfigError, DatasetError, RunFailed
from engine.generation.plan_file import prepare
from engine.generation.source import DrawerSource
from engine.generation.worker_process import WorkerDied
from tasks import ray_slots

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


def test_a_node_is_lost_another_joins_and_the_bytes_are_those_of_one_machine(cluster, workspace):
    images = 48
    workspace.run(images=images)
    expected = workspace.files()
    (workspace.root / "out").rename(workspace.root / "unbroken")
    workspace.drawn()
    first, second = cluster.add(), cluster.add()
    workspace.behave(sleep_s=0.4)

    def disturb():
        wait_for(lambda: workspace.committed() >= 2 and drawing(first) and drawing(second))
        (lost,) = drawing(first)
        cluster.kill(first)
        third = cluster.add()
        wait_for(lambda: drawing(third))
        workspace.behave()  # for processes that start from now on
        return not words(lost) and workspace.committed()

    with ThreadPoolExecutor(1) as thread:
        disturbed = thread.submit(disturb)
        counts = workspace.run(images=images, ray=cluster.address, workers=3)
        assert 2 <= disturbed.result() < 12
    assert counts["planned"] == images and not counts["failed"]
    assert workspace.files() == expected
    assert set(workspace.drawn()) == set(range(1, images + 1))
    assert not [path for path in (workspace.root / "out").rglob(".*") if path.name != ".plan.lock"]
    assert last_flow_state() == "COMPLETED"


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_killed_flow_leaves_nothing_on_the_nodes_and_is_finished_elsewhere(cluster, workspace):
    node = cluster.add()
    workspace.run(images=24, out="unbroken")
    workspace.behave(sleep_s=0.3)
    run = workspace.start(images=24, ray=cluster.address, workers=1)
    wait_for(lambda: workspace.committed() >= 2)
    run.kill()
    run.wait()
    wait_for(lambda: not drawing(node))
    assert 2 <= workspace.committed() < 6
    workspace.behave()
    workspace.run(images=24)
    assert workspace.files() == workspace.files("unbroken")


def planned(workspace: Workspace, *overrides: str) -> tuple[DrawerSource, Path]:
    """A source for slots, and a run's folder with its plan of ten items in three shards."""
    settings = load_settings(None, [*FAST, "ldm.resolution=32", *overrides])
    folders = [workspace.root / name for name in ("data", "adapter", "out")]
    source = DrawerSource(folders[0], "stub", folders[1], settings, "stub_drawer:load")
    prepare(folders[0], folders[2], 10, 0, settings, source.load().identity)
    return source, folders[2]


@pytest.mark.slow
def test_an_actor_that_stops_breathing_is_ended_and_its_shard_done_by_another(cluster, workspace, monkeypatch):
    monkeypatch.setattr(ray_slots, "PULSE_S", 0.5)
    monkeypatch.setattr(ray_slots, "SILENT_S", 8.0)
    node = cluster.add()
    source, out = planned(workspace)
    workspace.behave(sleep_s=1.0)
    with ray_slots.open_ray_slots(cluster.address, source, out, 1) as slots, ThreadPoolExecutor(1) as thread:
        with slots.borrowed() as worker:
            running = thread.submit(worker.run, 0)
            (drawer,) = wait_for(lambda: workspace.drawn() and drawing(node))
            actor = drawer.parent()
            actor.suspend()
            with pytest.raises(WorkerDied, match="no sign of life for 8 s in shard 0"):
                running.result(60)
        with slots.borrowed() as worker:
            assert worker.run(0).planned == 4
        assert not words(actor) and not words(drawer) and drawing(node) != [drawer]


@pytest.mark.slow
def test_a_shard_that_hangs_is_begun_anew_on_its_node(cluster, workspace):
    node = cluster.add()
    source, out = planned(workspace, "generation.stall_seconds=4")
    workspace.behave(hang_items=[2])
    with ray_slots.open_ray_slots(cluster.address, source, out, 1) as slots, slots.borrowed() as worker:
        with pytest.raises(WorkerDied, match=r"got nothing done for 4 s \(generation.stall_seconds\) in shard 0"):
            worker.run(0)
        assert worker.run(0).planned == 4 and len(drawing(node)) == 1


def test_each_slot_has_a_gpu_of_its_own(cluster, workspace):
    """Ray counts GPUs that there are not; the stand-in needs none."""
    node = cluster.add(gpus=2)
    source, out = planned(workspace, "ldm.device=cuda")
    with ray_slots.open_ray_slots(cluster.address, source, out, 3) as slots:
        with slots.borrowed() as first, slots.borrowed() as second:
            assert first.run(0).planned == second.run(1).planned == 4
            assert slots.free.empty()
        assert sorted(process.environ()["CUDA_VISIBLE_DEVICES"] for process in drawing(node)) == ["0", "1"]


def test_a_folder_that_a_node_does_not_see_is_named(cluster, workspace):
    cluster.add()
    source, out = planned(workspace)
    with ray_slots.open_ray_slots(cluster.address, source, out / "elsewhere", 1) as slots, slots.borrowed() as worker:
        with pytest.raises(DatasetError, match="On Ray's node .*elsewhere holds no plan.json"):
            worker.run(0)


def test_no_cluster_and_no_ray_are_the_users_business(workspace, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="Ray is not installed. `uv sync --extra ray`"):
        workspace.run(ray="auto")
    assert last_flow_state() == "FAILED"
