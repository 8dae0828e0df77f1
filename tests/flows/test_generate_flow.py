"""The real flow with Prefect's server and real worker processes; only the drawer is a stand-in."""
# ruff: noqa: F811

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from generation_workspace import last_flow_state, wait_for, workspace  # noqa: F401

from engine.errors import ModelError, RunConflict, RunFailed

pytestmark = pytest.mark.usefixtures("prefect_server")


def artifacts() -> list:
    """All artifacts on the server, oldest first."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return client.request("POST", "/artifacts/filter", json={"sort": "UPDATED_DESC"}).json()[::-1]


def test_a_run_adds_up_and_a_second_one_draws_nothing(workspace):
    counts = workspace.run()
    assert counts["planned"] == 10 == counts["kept"] + sum(counts["dropped"].values())
    assert counts["accepted"] + counts["rejected"] == counts["kept"] > 0
    assert workspace.drawn() == list(range(1, 11))
    before = workspace.digest()
    assert workspace.run() == counts
    assert workspace.drawn() == [] and workspace.digest() == before
    shown = {artifact["key"]: artifact for artifact in artifacts()}
    assert shown["generation-progress"]["data"] == 100
    assert json.loads(shown["generated-dataset"]["data"])[0]["kept"] == counts["kept"]
    assert json.loads(shown["review"]["data"])[0]["accepted"] == counts["accepted"]


def test_a_removed_shard_is_drawn_again_whatever_prefect_remembers(workspace):
    workspace.run()
    before = workspace.digest()
    workspace.drawn()
    shutil.rmtree(workspace.root / "out" / "shards" / "00001")
    workspace.run(workers=1)
    assert workspace.drawn() == [5, 6, 7, 8] and workspace.digest() == before


def test_a_killed_worker_process_is_replaced_and_the_shard_tried_again(workspace):
    workspace.behave(die_items=[6])
    counts = workspace.run()
    assert (workspace.root / "adapter" / "died-6").exists()
    before, drawn = workspace.digest(), workspace.drawn()
    assert counts["planned"] == 10 and not counts["failed"] and set(drawn) == set(range(1, 11))
    shutil.rmtree(workspace.root / "out")
    workspace.run()
    assert workspace.digest() == before


def test_a_shard_that_always_dies_fails_the_flow_and_the_others_are_kept(workspace):
    workspace.behave(die_items=[6], die_always=True)
    with pytest.raises(RunFailed, match=r"1 of 3 shards failed \(shard 1: .*ended in shard 1"):
        workspace.run()
    assert sorted(p.name for p in (workspace.root / "out" / "shards").glob("0*")) == ["00000", "00002"]
    assert not (workspace.root / "out" / "manifest.json").exists()
    assert last_flow_state() == "FAILED"
    workspace.drawn()
    workspace.behave()
    workspace.run()
    assert workspace.drawn() == [5, 6, 7, 8]


def test_too_many_failed_items_fail_the_flow_and_the_dataset_is_there(workspace):
    workspace.behave(raise_items={"3": "no idea"})
    with pytest.raises(RunFailed, match="1 of 10 items could not be drawn"):
        workspace.run()
    assert (workspace.root / "out" / "manifest.json").exists() and last_flow_state() == "FAILED"
    assert workspace.run(overrides=["generation.max_failed_rate=0.2"])["failed"] == {"ValueError": 1}


def test_a_users_mistake_is_not_tried_again(workspace):
    with pytest.raises(ModelError, match="There is no model 'missing'"):
        workspace.run(ldm="missing")
    assert last_flow_state() == "FAILED"
    workspace.run()
    with pytest.raises(RunConflict, match="12"):
        workspace.run(images=12)
    workspace.behave(model_error_items=[1])
    shutil.rmtree(workspace.root / "out")
    workspace.drawn()
    with pytest.raises(ModelError, match="another noise level"):
        workspace.run(workers=1)
    assert len(workspace.drawn()) == 2  # one batch: no second attempt, no further shard


def test_two_flows_never_draw_on_one_gpu_at_the_same_time(workspace, monkeypatch):
    """With a GPU that there is not: the stand-in needs none, its worker processes say when they draw."""
    import tasks.slots

    monkeypatch.setattr(tasks.slots, "gpus_for", lambda settings, workers: ["7"])
    workspace.behave(sleep_s=0.3)
    with ThreadPoolExecutor(2) as threads:
        runs = [threads.submit(workspace.run, workers=1, out=out) for out in ("out", "other")]
        assert runs[0].result() == runs[1].result()
    drew = [line.split()[-1] for line in (workspace.root / "adapter" / "drawn.log").read_text().splitlines()]
    first, second = dict.fromkeys(drew)
    assert drew == [first] * drew.count(first) + [second] * drew.count(second)


def test_who_finds_the_gpu_taken_says_so_and_waits(caplog):
    from tasks.gpus import own_gpus

    def wait() -> list[str]:
        with own_gpus(["8"], 1) as own:
            return own

    with ThreadPoolExecutor(1) as threads:
        with own_gpus(["8"], 1):
            waiting = threads.submit(wait)
            wait_for(lambda: "Other flows draw on the GPUs of this machine: waiting for 1 of 8" in caplog.text)
            assert not waiting.done()
        assert waiting.result(timeout=60) == ["8"]


def test_flows_with_a_gpu_each_run_side_by_side(workspace, monkeypatch):
    from tasks.gpus import own_gpus

    with own_gpus(["5", "6"], 1) as mine, own_gpus(["5", "6"], 1) as others:
        assert mine + others == ["5", "6"]
    with own_gpus(["5", "6"], 2) as both:
        assert both == ["5", "6"]


@pytest.mark.slow
def test_a_killed_flow_is_taken_up_where_it_was(workspace):
    workspace.run(images=24, out="unbroken")
    workspace.drawn()
    workspace.behave(sleep_s=0.3)
    run = workspace.start(images=24)
    wait_for(lambda: workspace.committed() >= 2)
    run.kill()
    run.wait()
    kept = workspace.committed()
    assert 2 <= kept < 6
    workspace.behave()
    workspace.drawn()
    workspace.run(images=24)
    assert len(workspace.drawn()) == 24 - 4 * kept
    assert workspace.files() == workspace.files("unbroken")
