"""Nights of the flow `scale-up`, one after the other; real are the detectors, the gates, Prefect; not the drawer."""
# ruff: noqa: F811

from __future__ import annotations

import json

import pytest
from night_workspace import workspace  # noqa: F401

from engine.curation.decisions import Decisions, load_decisions, write_decisions
from engine.curation.requests import Request, add_requests
from engine.data.dataset import read_dataset
from engine.generation.integrity import check_unchanged

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_nights_grow_the_pool_by_what_is_new_and_does_no_harm(workspace, monkeypatch):
    """In a plain folder, without git and DVC. test_whole_week.py has versions, kills, no disk, no server."""
    # Night 1: nothing was compared before, so all classes count alike.
    first = workspace.run()
    assert first["verdict"] == "promoted" and first["images"] == first["pool_images"] == workspace.accepted(1) > 0
    assert workspace.night(1).plan["class_weights"] == [] and workspace.night(1).plan["measured"] == "calibration"
    assert workspace.promoted() == {"format": 1, "night": 1, "pool": "0001/pool", "images": first["pool_images"]}
    found = json.loads((workspace.nights.folder / "0001" / "comparison" / "results.json").read_text())
    gates = json.loads((workspace.nights.folder / "0001" / "generated" / "gates.json").read_text())
    assert found["searched_with"] == "world" and gates["features"]["id"] == "world"
    report = (workspace.nights.folder / "0001" / "report.md").read_text()
    assert first["version"] is None and "No version: Nothing was versioned: " in report

    # Night 2: a comparison finds a class weak, which is drawn more often. Two images repeat the pool's: no news. The
    # flow ends in the middle; taken up again, nothing is drawn twice.
    weak, repeated = workspace.weak_class(), workspace.repeat(1, items=2)
    import flows.scale_up

    def cut_off(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(flows.scale_up, "compare_night", cut_off)
        workspace.run()
    night = workspace.night(2)
    assert night.plan["class_weights"] == [f"{weak.name}=8.0"] and night.plan["measured"] == "last night"
    assert night.plan["size_weights"] == ["small=2.0", "large=2.0"]
    assert workspace.share_of(2, weak.id) > workspace.share_of(1, weak.id)
    assert night.review["reasons"]["duplicate"] >= len(repeated) == 2 and night.verdict is None
    workspace.drawn()
    second = workspace.run()
    assert (second["night"], second["verdict"]) == (2, "promoted") and workspace.drawn() == 0
    assert workspace.promoted()["images"] == second["pool_images"] == workspace.accepted(1, 2)

    # Night 3: it draws more of what a reviewer asked for on night 1. A stricter policy keeps it out.
    workspace.behave()
    before = workspace.sources_of(2)
    asked_for = min(before, key=before.get)
    add_requests(workspace.nights.folder / "0001" / "generated", [Request(1, asked_for, (), None, "more")])
    third = workspace.run("scale_up.promote=helps")
    assert (third["night"], third["verdict"]) == (3, "rejected") and "wants an interval above 0" in third["reason"]
    uses = workspace.sources_of(3)
    assert uses[asked_for] / uses.total() > 1.5 * before[asked_for] / before.total()
    assert "What reviewers asked for: `" in (workspace.nights.folder / "0003" / "report.md").read_text()
    assert workspace.promoted()["night"] == 2 and (workspace.nights.folder / "0003" / "pool").is_dir()
    states = [(workspace.nights.folder / f"000{n}/comparison/arms/real/seed-0.json").stat().st_ino for n in (1, 2, 3)]
    assert len(set(states)) == 1  # what real images alone teach was trained once
    report = (workspace.nights.folder / "0003" / "report.md").read_text()
    assert "Night 3 is rejected" in report and "as a candidate, out of the pool" in report

    # At the end: the pool is that of night 2, whole, with the provenance of both nights.
    pool = read_dataset(workspace.nights.folder / workspace.nights.promoted(), "annotations")
    check_unchanged(pool.folder, pool.images)
    assert len(pool.images) == workspace.accepted(1, 2)
    assert len({image.extra["de"]["plan"] for image in pool.images}) == 2


def test_a_night_waits_for_a_person_without_holding_a_slot(workspace):
    """A run of a deployment is suspended, and goes on when it is resumed; another run of it meanwhile does nothing."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import Pause
    from prefect.flow_engine import run_flow

    from flows.scale_up import scale_up

    parameters = workspace.parameters("scale_up.auto_accept=false")
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(scale_up), "nightly", entrypoint="none")

        def run(flow_run):
            return run_flow(scale_up, flow_run=flow_run, parameters=parameters, return_type="state")

        first = client.create_flow_run_from_deployment(deployment)
        with pytest.raises(Pause):  # which ends the process of a worker's run
            run(first)
        assert client.read_flow_run(first.id).state.name == "Suspended"
        night = workspace.night(1)
        assert night.waits_for == str(first.id) and night.verdict is None and not night.looked
        assert "waits until a person has looked" in (workspace.nights.folder / "0001" / "report.md").read_text()

        other = run(client.create_flow_run_from_deployment(deployment))
        assert other.is_completed() and workspace.night(1) == night

        rejected = decide(workspace.nights.folder / "0001" / "generated")
        assert client.resume_flow_run(first.id).status.value == "ACCEPT"
        workspace.drawn()
        assert run(client.read_flow_run(first.id)).is_completed()
    night = workspace.night(1)
    assert night.verdict == "promoted" and night.looked and workspace.drawn() == 0
    assert night.review["rejected"] == 1 and night.pool_images == night.review["accepted"]
    pool = read_dataset(workspace.nights.folder / "0001" / "pool", "annotations")
    assert rejected not in {image.extra["de"]["item"] for image in pool.images}


def test_where_no_run_can_be_suspended_the_next_one_goes_on(workspace):
    strict = ("scale_up.auto_accept=false", "review.min_mean_score=1.0")
    waiting = workspace.run(*strict)
    assert waiting["verdict"] is None and workspace.night(1).waits_for == ""
    assert workspace.run(*strict) == waiting  # time alone is no review
    done = workspace.run(*strict, reviewed=True)
    assert (done["night"], done["verdict"]) == (1, "rejected") and "review accepted none" in done["reason"]


def decide(generated) -> int:
    """What a person does in the App: one accepted image is rejected. Returns its item."""
    dataset = read_dataset(generated, "annotations")
    decisions = load_decisions(generated, dataset)
    image = min(decisions.accepted)
    decided = Decisions(decisions.accepted - {image}, {**decisions.rejected, image: "reviewer"}, {image: False})
    write_decisions(generated, dataset, decided)
    return next(i.extra["de"]["item"] for i in dataset.images if i.id == image)
