"""Nights of the flow `scale-up`, one after the other; real are the detectors, the gates, Prefect; not the drawer."""
# ruff: noqa: F811

from __future__ import annotations

import json

import pytest
from night_workspace import workspace  # noqa: F401

from engine.curation.decisions import Decisions, load_decisions, write_decisions
from engine.data.dataset import read_dataset
from engine.errors import ConfigError, RunFailed
from engine.evaluation.results import SCORES
from engine.generation.integrity import check_unchanged
from tasks.night_file import Nights

pytestmark = pytest.mark.usefixtures("prefect_server")


def write_weak_comparison(folder, data, weak: str) -> None:
    """A results.json in which real images alone teach one class badly."""
    names = [category.name for category in read_dataset(data, "train").categories]
    arm = {score: [0.4, 0.5] for score in SCORES} | {"loss_curve": [[], []], "seconds": [1.0, 1.0]}
    arm |= {"per_class": {name: [0.1, 0.1] if name == weak else [0.8, 0.8] for name in names}}
    delta = {"mean": 0.0, "ci95": [-0.1, 0.1], "verdict": "cannot tell", "baseline": "real", "treatment": "real+de"}
    parts = {name: {} for name in ("settings", "versions", "data", "generated", "adapter")}
    arms = {"arms": {"real": arm, "real+de": arm}, "baseline": "real", "delta": delta, "deltas": {"real+de": delta}}
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({**parts, **arms, "seeds": [0, 1]}))


def test_a_week_of_nights(workspace, monkeypatch):
    # Night 1: nothing was compared before, so all classes count alike.
    first = workspace.run()
    assert first["verdict"] == "promoted" and first["images"] == first["pool_images"] == workspace.accepted(1) > 0
    assert workspace.night(1).plan["class_weights"] == [] and workspace.night(1).plan["measured"] == "calibration"
    assert workspace.promoted() == {"format": 1, "night": 1, "pool": "0001/pool", "images": first["pool_images"]}

    # Night 2: a comparison finds a class weak, which is drawn more often. A shard's worker is killed again and again.
    data = read_dataset(workspace.root / "data", "train")
    pictures = {c: len({b.image_id for b in data.annotations if b.category_id == c.id}) for c in data.categories}
    weak = min((c for c, count in pictures.items() if 0 < count < len(data.images)), key=pictures.get)
    write_weak_comparison(workspace.root / "comparison", workspace.root / "data", weak.name)
    workspace.behave(die_items=[6], die_always=True)
    with pytest.raises(RunFailed, match="1 of 2 shards failed"):
        workspace.run()
    night = workspace.night(2)
    assert night.plan["class_weights"] == [f"{weak.name}=8.0"] and night.drawn is None and night.verdict is None
    assert night.plan["measured"] == "last night"
    assert workspace.share_of(2, weak.id) > workspace.share_of(1, weak.id)

    # Taken up again it draws only that shard; then the flow itself ends in the middle, and nothing is drawn twice.
    workspace.behave()
    workspace.drawn()
    import flows.scale_up

    def cut_off(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(flows.scale_up, "compare_night", cut_off)
        workspace.run()
    assert workspace.drawn() == 2 and workspace.night(2).pool_images == workspace.accepted(1, 2)
    second = workspace.run()
    assert (second["night"], second["verdict"]) == (2, "promoted") and workspace.drawn() == 0
    assert workspace.promoted()["images"] == second["pool_images"] == workspace.accepted(1, 2)

    # Night 3: a stricter policy keeps the night out; its images stay as they are.
    third = workspace.run("scale_up.promote=helps")
    assert (third["night"], third["verdict"]) == (3, "rejected") and "wants an interval above 0" in third["reason"]
    assert workspace.promoted()["night"] == 2 and (workspace.nights.folder / "0003" / "pool").is_dir()
    states = [(workspace.nights.folder / f"000{n}/comparison/arms/real/seed-0.json").stat().st_ino for n in (1, 2, 3)]
    assert len(set(states)) == 1  # what real images alone teach was trained once

    # Night 4: no disk. The night stays open and keeps its number; then the gates let nothing through.
    for _ in range(2):
        with pytest.raises(ConfigError, match="scale_up.disk_gb"):
            workspace.run("scale_up.disk_gb=1e9")
    assert workspace.night(4).plan is None and not (workspace.nights.folder / "0004" / "generated").exists()
    fourth = workspace.run("review.min_mean_score=1.0")
    assert (fourth["night"], fourth["verdict"], fourth["images"]) == (4, "rejected", 0)
    assert "review accepted none" in fourth["reason"] and workspace.night(4).comparison is None

    # At the end: the pool is that of night 2, whole, with the provenance of both nights.
    nights = Nights(workspace.nights.folder)
    assert [night.verdict for night in nights.all()] == ["promoted", "promoted", "rejected", "rejected"]
    pool = read_dataset(nights.folder / nights.promoted(), "annotations")
    check_unchanged(pool.folder, pool.images)
    assert len(pool.images) == workspace.accepted(1, 2)
    assert len({image.extra["de"]["plan"] for image in pool.images}) == 2
    assert "Night 3 is rejected" in (nights.folder / "0003" / "report.md").read_text()


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
