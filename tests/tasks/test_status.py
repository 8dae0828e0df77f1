"""`de status`: what it finds in folders that the engine wrote, whole, half done and damaged."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image

from engine.config import load_settings
from engine.curation.decisions import Decisions, write_decisions
from engine.data.dataset import read_dataset, write_dataset
from engine.data.records import Annotation, Category, ImageRecord
from engine.errors import ConfigError
from engine.generation.run import generate
from flows.status_table import status_table
from tasks.flow_runs import live_flow_runs, tell_port
from tasks.inventory import disk_bytes, take_stock
from tasks.night_file import Nights
from tasks.status import read_status, versions_of

sys.path.append(str(Path(__file__).parents[1] / "engine" / "generation"))
import stub_drawer  # noqa: E402,F401

NOBODY = "http://127.0.0.1:9/api"
CARD = {
    "format": 3, "ldm": {"id": "world"}, "taps": [], "timestep": 1, "resolution": 64, "head": {"head": "fcos"},
    "detr": {}, "classes": [{"id": 1, "name": "a"}], "weights_sha256": "0", "validation": {"map": 0.4321},
}  # fmt: skip
RESULTS = {
    "arms": {
        name: {
            **{score: [0.2, 0.3] for score in "map map50 map75 map_small map_medium map_large ar100".split()},
            "loss_curve": [[], []],
            "seconds": [1.0, 1.0],
        }
        for name in ("real", "real+de")
    },
    "baseline": "real",
    "delta": {"mean": 0.05, "ci95": [0.01, 0.09], "verdict": "helps", "baseline": "real", "treatment": "real+de"},
    "deltas": {}, "seeds": [0, 1], "settings": {}, "versions": {}, "data": {}, "generated": {}, "adapter": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """A real dataset and a generated one of 5 items in shards of 2; only the drawer is a stand-in."""
    folder = tmp_path_factory.mktemp("drawn") / "ws"
    (folder / "real" / "images").mkdir(parents=True)
    (folder.parent / "stub").mkdir()
    Image.new("RGB", (32, 32)).save(folder / "real" / "images" / "1.png")
    box = Annotation(1, 1, 2, (2.0, 3.0, 10.0, 9.0), 90.0, 0, {})
    categories = [Category(i, f"class{i}") for i in (2, 5, 9)]
    for split in ("train", "unlabelled"):
        write_dataset(
            folder / "real", split, [ImageRecord(1, "1.png", 32, 32, {})], [box][: split == "train"], categories
        )
    overrides = ["ldm.resolution=32", "generation.keep_negatives=true", "generation.shard_size=2"]
    settings = load_settings(None, overrides)
    paths = (folder / "real", "stub", folder.parent / "stub", folder / "generated")
    generate(*paths, 5, 0, settings, loader="stub_drawer:load")
    return folder


@pytest.fixture
def workspace(drawn, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PREFECT_API_URL", NOBODY)
    shutil.copytree(drawn, tmp_path / "ws")
    return tmp_path / "ws"


def found(folder: Path) -> dict:
    return {entry.folder: entry for entry in take_stock(folder)}


def write(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))


def test_everything_that_there_is_has_a_line(workspace):
    write(workspace / "models" / "adapter" / "adapter.json", CARD)
    write(workspace / "models" / "adapter" / "adapter.safetensors", "")
    write(workspace / "models" / "ldm" / "model_index.json", {})
    base = {"id": "world", "weights_sha256": "0"}
    write(workspace / "models" / "ldm" / "adaptation.json", {"base": base, "method": "full"})
    write(workspace / "comparison" / "results.json", RESULTS)
    status = read_status(workspace)
    assert [(e.kind, e.folder) for e in status.found] == [
        ("dataset", "real"),
        ("ldm", "models/ldm"),
        ("adapter", "models/adapter"),
        ("generated", "generated"),
        ("comparison", "comparison"),
    ]
    assert not [e.problem for e in status.found if e.problem]
    table = status_table(status)
    for words in ("AP on val", "43.2", "+5.0 mAP", "helps", "world (full)", "3/3", "not reviewed", "no server"):
        assert words in table
    json.dumps(dataclasses.asdict(status))


def test_counts_are_those_of_the_files(workspace):
    real = found(workspace)["real"].content
    assert (real.images, real.boxes) == ({"train": 1, "unlabelled": 1}, {"train": 1, "unlabelled": 0})
    run = found(workspace)["generated"].content
    counts = json.loads((workspace / "generated" / "manifest.json").read_text())["counts"]
    assert (run.planned, run.shards, run.shards_done, run.merged) == (5, 3, 3, True)
    assert (run.kept, run.boxes) == (counts["kept"], counts["boxes"])
    assert run.planned == run.kept + run.dropped + run.failed


def test_a_run_that_was_stopped_shows_how_far_it_came(workspace):
    generated = workspace / "generated"
    for name in ("manifest.json", "annotations.json"):
        (generated / name).unlink()
    shutil.rmtree(generated / "shards" / "00001")
    run = found(workspace)["generated"].content
    assert (run.planned, run.shards_done, run.merged, run.accepted) == (5, 2, False, None) and 0 < run.kept <= 3
    image = next((generated / "shards" / "00000").rglob("0*.jpg"))
    image.write_bytes(b"cut off")  # a shard with a mark and a broken file is not done
    assert found(workspace)["generated"].content.shards_done == 1


def test_accepted_are_those_that_training_may_use(workspace):
    dataset = read_dataset(workspace / "generated", "annotations")
    ids = [image.id for image in dataset.images]
    write_decisions(dataset.folder, dataset, Decisions(frozenset(ids[1:]), {ids[0]: "dull"}))
    assert found(workspace)["generated"].content.accepted == len(ids) - 1
    decisions = json.loads((dataset.folder / "decisions.json").read_text())
    (dataset.folder / "decisions.jsonl").write_text("{}\n")
    assert "decisions.jsonl, entry 1: must be" in found(workspace)["generated"].content.review_problem
    write(dataset.folder / "decisions.json", decisions | {"digest": "0" * 64})
    run = found(workspace)["generated"].content
    assert run.accepted is None and "another annotations.json" in run.review_problem
    assert "another annotations.json" in status_table(read_status(workspace))


def test_the_last_nights_say_what_became_of_them(workspace):
    nights = Nights(workspace / "nights")
    for number in range(1, 10):
        night = nights.open_night()
        shutil.copytree(workspace / "real", nights.folder_of(night) / "generated")
        ruled = {"ruling": "rejected", "reason": "it hurts"} if number % 2 else {"ruling": "promoted", "reason": "fine"}
        tag = None if number % 2 else f"pool-v{number // 2}"
        night = nights.write(night, plan={"images": 6}, review={"images": 5, "accepted": 4}, version=tag, **ruled)
        nights.write(night, verdict=night.ruling)
    status = read_status(workspace)
    table = status_table(status)
    assert {entry.folder for entry in status.found} == {"real", "generated"} and status.nights_bytes > 0
    assert "0002" not in table and "0003" in table and "Night 9 is rejected: it hurts." in table
    assert [line.split() for line in table.splitlines() if line.startswith("0008")] == [
        ["0008", "promoted", "6", "4", "-", "pool-v4"]
    ]
    nights.open_night()
    assert "Night 10 is not over" in status_table(read_status(workspace))
    json.dumps(dataclasses.asdict(status))
    write(nights.folder / "0003" / "night.json", "{")
    assert "night.json is damaged" in status_table(read_status(workspace))


def test_a_copy_without_plan_and_shards_is_a_generated_dataset_too(workspace):
    for name in ("plan.json", "items.npy", "run.json"):
        (workspace / "generated" / name).unlink()
    shutil.rmtree(workspace / "generated" / "shards")
    run = found(workspace)["generated"].content
    assert (run.planned, run.shards) == (5, None) and run.kept


def test_shards_in_a_store_are_not_asked_for(workspace):
    file = workspace / "generated" / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"store": "s3://bucket/run"}))
    for name in ("plan.json", "manifest.json", "annotations.json"):
        (workspace / "generated" / name).unlink()
    entry = found(workspace)["generated"]
    assert entry.content is None and "s3://bucket/run" in entry.problem


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("real/train.json", "{"),
        ("generated/plan.json", "[]"),
        ("generated/manifest.json", "{}"),
        ("models/a/adapter.json", "{}"),
        ("models/l/adaptation.json", "[]"),
        ("comparison/results.json", "[]"),
    ],
)
def test_what_is_damaged_is_named_and_hides_nothing_else(workspace, file, content):
    write(workspace / "models" / "l" / "model_index.json", "{}")
    write(workspace / file, content)
    status = read_status(workspace)
    (bad,) = [entry for entry in status.found if entry.problem]
    assert bad.folder == str(Path(file).parent) and bad.content is None
    table = status_table(status)
    assert "Problems:" in table and bad.folder in table and len(status.found) >= 3


def test_hidden_and_foreign_folders_are_not_searched(workspace):
    for folder in (".cache", "venv", "a/b/c/d/e"):
        shutil.copytree(workspace / "real", workspace / folder / "real")
    (workspace / "venv" / "pyvenv.cfg").touch()
    write(workspace / "other" / "run.json", {"anything": 1})
    assert set(found(workspace)) == {"real", "generated"}


def test_disk_counts_hard_links_once_and_named_folders_for_themselves(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one").write_bytes(b"x" * 10_000)
    once = disk_bytes(tmp_path)
    os.link(tmp_path / "a" / "one", tmp_path / "two")
    assert disk_bytes(tmp_path) == once >= 10_000
    assert disk_bytes(tmp_path, {tmp_path / "a"}) == once
    (tmp_path / "two").unlink()
    assert disk_bytes(tmp_path, {tmp_path / "a"}) == 0


def test_versions_are_tags_of_a_name_and_a_number_in_their_order(tmp_path):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True)

    assert versions_of(tmp_path) == ()
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "start")
    for tag in ("cells-v10", "cells-v2", "v1.0", "a-de-v1", "cells-v2x"):
        git("tag", "-a", tag, "-m", tag)
    git("tag", "light-v1")
    assert [version.tag for version in versions_of(tmp_path)] == ["a-de-v1", "cells-v2", "cells-v10", "light-v1"]
    assert versions_of(tmp_path)[0].day == time.strftime("%Y-%m-%d")


def test_an_empty_folder_and_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", NOBODY)
    assert "nothing yet" in status_table(read_status(tmp_path))
    with pytest.raises(ConfigError, match="no folder"):
        read_status(tmp_path / "none")


@pytest.mark.parametrize("url", [NOBODY, "what?", "http://me:hunter2@127.0.0.1:9/api", "http://[::1"])
def test_no_server_is_no_error(monkeypatch, tmp_path, url):
    monkeypatch.setenv("PREFECT_API_URL", url)
    assert live_flow_runs(tmp_path).server is None


def test_runs_that_are_not_finished_are_named(prefect_server, monkeypatch, tmp_path):
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL
    from prefect.states import Completed, Running

    # As `de up --port N` leaves it in its workspace.
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    (tmp_path / ".prefect").mkdir()
    tell_port(tmp_path, urlsplit(PREFECT_API_URL.value()).port)

    @flow(name="status-test")
    def nothing():
        pass

    with get_client(sync_client=True) as client:
        going, done = (client.create_flow_run(nothing, name=name, state=Running()) for name in ("going", "done"))
        client.set_flow_run_state(done.id, Completed(), force=True)
        answer = live_flow_runs(tmp_path)
        client.set_flow_run_state(going.id, Completed(), force=True)
    assert answer.server.startswith(("127.0.0.1:", "localhost:")) and answer.problem is None
    tell_port(tmp_path, None)
    assert not list((tmp_path / ".prefect").iterdir())
    assert [(r.flow, r.name, r.state) for r in answer.runs if r.flow == "status-test"] == [
        ("status-test", "going", "RUNNING")
    ]
