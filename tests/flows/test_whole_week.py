"""A week of the flow `scale-up` in a workspace of git and DVC, with all that can go wrong in a night.

Real are Prefect and its server, git, DVC, the detectors and the gates; only the drawer is a stand-in.
"""
# ruff: noqa: F811

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from night_workspace import ROOT, STAND_IN, NightWorkspace, workspace  # noqa: F401

from engine.data.dataset import read_dataset
from engine.errors import ConfigError, DatasetError, RunFailed
from engine.generation.integrity import check_unchanged
from tasks.checkout import checkout
from tasks.night_file import Nights
from tasks.ports import free_port
from tasks.server import api_url, healthy, quiet_environment, server_environment
from tasks.version_list import list_versions

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

# Runs a night as a program of its own that can be killed, against the server of its environment.
PROGRAM = """
import json, sys
from pathlib import Path
import tasks.generate
from night_workspace import NightWorkspace
tasks.generate.LOADER = "stub_drawer:load"
NightWorkspace(Path(sys.argv[1])).run()
"""


def sh(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def dvc(*words: str) -> str:
    return sh(sys.executable, "-m", "dvc", *words)


@pytest.fixture
def versioned(workspace, monkeypatch) -> NightWorkspace:
    """The workspace under git and DVC, with the repository's own stage and a remote; DVC's cache is its own."""
    root = workspace.root
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(root.parent / "site"))
    entry = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["pool"]
    entry["cmd"] = "de pool --nights nights --data data --ldm world --adapter adapter --out pool"
    entry["deps"] = ["data"]  # the stand-in's folder holds its log
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"pool": entry}}))
    (root / ".gitignore").write_text("/nights/*\n!/nights/promoted.json\n/pool\n/adapter\n/data\n/comparison\n")
    sh("git", "init", "-q")
    sh("git", "config", "user.email", "a@example.org")
    sh("git", "config", "user.name", "a")
    dvc("init", "-q")
    dvc("remote", "add", "-d", "far", str(root.parent / "remote"))
    sh("git", "add", ".")
    sh("git", "commit", "-qm", "start")
    return workspace


def start(workspace: NightWorkspace, server: str) -> subprocess.Popen:
    """A night in another process."""
    paths = os.pathsep.join(map(str, (ROOT, STAND_IN, Path(__file__).parent)))
    environment = os.environ | {"PREFECT_API_URL": server, "PYTHONPATH": paths}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(workspace.root)], env=environment, cwd=workspace.root)


def shards(workspace: NightWorkspace, number: int) -> int:
    return len(list((workspace.nights.folder / f"{number:04d}/generated/shards").glob("[0-9]*/shard.json")))


def wait_for(condition, seconds: float = 300.0):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return value


def start_server(home: Path) -> tuple[subprocess.Popen, int]:
    port = free_port()
    environment = os.environ | server_environment(home, port) | quiet_environment(home)
    server = subprocess.Popen([sys.executable, "-m", "prefect", "server", "start"], env=environment, cwd=home)
    wait_for(lambda: healthy(port))
    return server, port


def end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()


def test_a_week_with_everything_that_can_go_wrong(versioned, tmp_path, monkeypatch):
    from prefect.settings import PREFECT_API_URL

    week = versioned

    # Night 1 makes the first version.
    first = week.run()
    assert (first["verdict"], first["version"]) == ("promoted", "pool-v1")

    # Night 2: a class is weak and drawn more often, two images repeat the pool's, and the night is killed while it
    # draws: no word, no clean-up. The next run draws what is missing.
    weak = week.weak_class()
    week.repeat(1, items=2)
    behaviour = json.loads((week.root / "adapter" / "behaviour.json").read_text())
    week.behave(**behaviour, gate_from=5)
    night = start(week, PREFECT_API_URL.value())
    wait_for(lambda: shards(week, 2) == 1)
    end(night)
    assert week.night(2).plan["class_weights"] == [f"{weak.name}=8.0"] and week.night(2).drawn is None
    week.behave(**behaviour)
    week.drawn()
    second = week.run()
    assert (second["night"], second["verdict"], second["version"]) == (2, "promoted", "pool-v2") and week.drawn() == 2
    assert week.share_of(2, weak.id) > week.share_of(1, weak.id) and week.night(2).review["reasons"]["duplicate"] >= 2

    # Night 3: the gates let nothing through. Night 4: the interval does not say that it helps. Neither is a version.
    week.behave()
    third = week.run("review.min_mean_score=1.0")
    assert (third["verdict"], third["images"], third["version"]) == ("rejected", 0, None)
    fourth = week.run("scale_up.promote=helps")
    assert (fourth["verdict"], fourth["version"]) == ("rejected", None) and fourth["images"] > 0

    # Night 5: no disk; then a worker dies again and again; then there is room, and nothing stands in the way.
    with pytest.raises(ConfigError, match="scale_up.disk_gb"):
        week.run("scale_up.disk_gb=1e9")
    week.behave(die_items=[5], die_always=True)
    with pytest.raises(RunFailed, match="1 of 2 shards failed"):
        week.run()
    week.behave()
    week.drawn()
    fifth = week.run()
    assert (fifth["night"], fifth["version"]) == (5, "pool-v3") and week.drawn() == 2

    # Night 6: Prefect's server is killed while the night draws. What is drawn stays; with a fresh server the next run
    # makes up the night.
    server, port = start_server(tmp_path / "prefect")
    week.behave(gate_from=5)
    night = start(week, api_url(port))
    wait_for(lambda: shards(week, 6) == 1)
    end(server)
    (week.root / "adapter" / "open").touch()
    wait_for(lambda: shards(week, 6) == 2)
    end(night)
    assert week.night(6).verdict is None
    week.behave()
    week.drawn()
    sixth = week.run()
    assert (sixth["night"], sixth["verdict"], sixth["version"]) == (6, "promoted", "pool-v4") and week.drawn() == 0

    # Night 7: a person left something in the pool. The night stops before it is lost; then it is killed between its
    # version and its verdict; then it ends.
    (week.root / "pool" / "edits.jsonl").write_text("")
    with pytest.raises(DatasetError, match="pool was changed by hand"):
        week.run()
    (week.root / "pool" / "edits.jsonl").unlink()

    def cut_off(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("tasks.night_pool.set_verdict", cut_off)
        week.run()
    seventh = week.run()
    assert (seventh["night"], seventh["version"]) == (7, "pool-v5")

    # The state at the end: nights, pool, versions, git and DVC tell the same.
    promoted = [1, 2, 5, 6, 7]
    verdicts = {night.number: night.verdict for night in week.nights.all()}
    assert verdicts == {n: "promoted" if n in promoted else "rejected" for n in range(1, 8)}
    versions = list_versions()
    assert [(v.name, v.verdict) for v in versions] == [(f"pool-v{n}", "promoted") for n in range(1, 6)]
    for version, count in zip(versions, range(1, 6), strict=True):
        number = promoted[count - 1]
        assert version.reason.startswith(f"night {number}: it is not shown to hurt") and version.metrics["comparison"]
        results = json.loads((week.nights.folder / f"{number:04d}/comparison/results.json").read_text())
        assert results["trained_on"]["generated"]["version"] == version.name
        # annotations.json, manifest.json, CARD.md, promoted.json, and the images of all promoted nights so far
        assert version.files == 4 + week.accepted(*promoted[:count])
    pool = read_dataset(week.root / "pool", "annotations")
    check_unchanged(pool.folder, pool.images)
    assert len(pool.images) == week.accepted(*promoted) == seventh["pool_images"]
    plans = {image.extra["de"]["plan"] for image in pool.images}
    rejected = [read_dataset(week.nights.folder / f"{n:04d}/generated", "annotations").images for n in (3, 4)]
    assert len(plans) == 5 and not plans & {image.extra["de"]["plan"] for images in rejected for image in images}
    assert sh("git", "status", "--porcelain") == "" and "up to date" in dvc("status")

    # An older version comes back from the remote, byte for byte, and the next night builds on it.
    shutil.rmtree(week.root / ".dvc" / "cache")
    checkout("pool-v2")
    pool = read_dataset(week.root / "pool", "annotations")
    check_unchanged(pool.folder, pool.images)
    assert len(pool.images) == week.accepted(1, 2) and week.promoted()["night"] == 2
    eighth = week.run()
    assert (eighth["version"], eighth["pool_images"]) == ("pool-v6", week.accepted(1, 2, 8))
    assert sh("git", "status", "--porcelain") == "" and "up to date" in dvc("status")
    assert Nights(week.nights.folder).promoted() == "0008/pool"
