"""The nights' pool as a version: a real git and DVC workspace; only the drawer and the comparison are stand-ins."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import version_workspace
import yaml
from version_workspace import draw_dataset, results_on

from engine.config import load_settings
from engine.curation.pool import merge_pool
from engine.data.dataset import read_dataset
from engine.errors import DatasetError, RunFailed
from engine.generation.contents import generated_content
from engine.generation.integrity import check_unchanged
from tasks.night_file import Night, Nights
from tasks.night_pool import version_pool, write_pool
from tasks.version_list import list_versions

fresh, workspace = version_workspace.fresh, version_workspace.workspace
ROOT = Path(__file__).parents[2]
OPTIONS = {"data": "data", "ldm": "models/ldm", "adapter": "models/adapter"}


@pytest.fixture
def nights(workspace, tmp_path, monkeypatch) -> Nights:
    """The workspace with the stage of the repository's own dvc.yaml, on small parents."""
    monkeypatch.chdir(workspace.root)
    entry = yaml.safe_load((ROOT / "dvc.yaml").read_text().replace("data/world", "data"))["stages"]["pool"]
    (workspace.root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"pool": entry}}))
    for name in ("ldm", "adapter"):
        (workspace.root / "models" / name).mkdir(parents=True)
        (workspace.root / "models" / name / "weights").write_text(name)
    (workspace.root / ".gitignore").write_text("/nights/*\n!/nights/promoted.json\n/pool\n/models/\n/bin\n")
    workspace.sh("git", "add", ".")
    workspace.sh("git", "commit", "-qm", "the stage of the nights")
    return Nights(Path("nights"))


def promoted_night(nights: Nights, number: int, tmp: Path) -> Night:
    """A night up to its promotion."""
    base, night = nights.promoted(), Night(number, reason="it is not shown to hurt: +1.2 mAP", ruling="promoted")
    folder = nights.folder_of(night)
    draw_dataset(tmp / f"real-{number}", folder / "generated", number + 2, f"generation.jpeg_quality={80 + number}")
    manifest = merge_pool([*([nights.folder / base] if base else []), folder / "generated"], folder / "pool")
    (folder / "comparison").mkdir()
    (folder / "comparison" / "results.json").write_text(json.dumps(results_on(generated_content(folder / "pool"))))
    night = replace(night, pool_images=manifest["images"])
    nights.promote(night)
    return night


def version(nights: Nights, night: Night, **changes):
    return version_pool(nights, night, OPTIONS | changes, load_settings(None), "pool")


def test_promoted_pools_are_versions_with_the_verdict_of_their_night(workspace, nights, tmp_path, monkeypatch):
    (workspace.root / "notes.txt").write_text("not ours")
    (workspace.root / "data" / "b.txt").write_text("nor this")
    workspace.sh("git", "add", "data")
    workspace.dvc("remote", "add", "-d", "far", str(tmp_path / "remote"))
    workspace.sh("git", "commit", "-qm", "a remote", ".dvc")
    first = promoted_night(nights, 1, tmp_path)

    # Cut off between tag and verdict, it ends in the same version.
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("tasks.night_pool.set_verdict", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        version(nights, first)
    assert [(v.name, v.verdict) for v in list_versions()] == [("pool-v1", "candidate")]
    assert version(nights, first) == ("pool-v1", None)

    second = promoted_night(nights, 2, tmp_path)
    (workspace.root / "pool" / "decisions.json").write_text("a person's")
    with pytest.raises(DatasetError, match="pool was changed by hand"):
        version(nights, second)
    (workspace.root / "pool" / "decisions.json").unlink()
    assert version(nights, second) == ("pool-v2", None)

    found = list_versions()
    assert [(v.name, v.verdict, v.files) for v in found] == [("pool-v1", "promoted", 7), ("pool-v2", "promoted", 11)]
    assert found[1].reason == "night 2: it is not shown to hurt: +1.2 mAP"
    assert found[1].metrics["comparison"]["difference"] == 0.012
    results = json.loads((nights.folder / "0002" / "comparison" / "results.json").read_text())
    assert results["trained_on"]["generated"]["version"] == "pool-v2"
    pool = read_dataset(workspace.root / "pool", "annotations")
    check_unchanged(pool.folder, pool.images)
    assert len(pool.images) == second.pool_images == 7 and "pool-v2" in (pool.folder / "CARD.md").read_text()
    assert len(list((tmp_path / "remote").rglob("*"))) > 11
    # What was not ours is as it was: one file staged, one unknown to git.
    assert workspace.sh("git", "status", "--porcelain").splitlines() == ["A  data/b.txt", "?? notes.txt"]


def test_a_git_that_refuses_stops_the_recording_and_loses_nothing(workspace, nights, tmp_path):
    night = promoted_night(nights, 1, tmp_path)
    (workspace.root / ".git" / "MERGE_HEAD").write_text(workspace.sh("git", "rev-parse", "HEAD"))
    with pytest.raises(RunFailed, match="partial commit during a merge"):
        version(nights, night)
    (workspace.root / ".git" / "MERGE_HEAD").unlink()
    assert version(nights, night) == ("pool-v1", None)


def test_nights_that_are_not_the_stages_work_are_no_version_and_the_reason_is_told(workspace, nights, tmp_path):
    night = promoted_night(nights, 1, tmp_path)
    tag, why = version(nights, night, adapter="another")
    assert tag is None and "--adapter:" in why and not list_versions()
    shutil.rmtree(workspace.root / ".git")
    assert version(nights, night) == (None, f"Nothing was versioned: {Path().absolute()} is in no git repository.")
    (workspace.root / "dvc.yaml").write_text("stages: {}")
    assert version(nights, night) == (None, "Nothing was versioned: dvc.yaml has no stage 'pool'.")


def test_before_the_first_promotion_the_pool_is_an_empty_folder(tmp_path):
    nights, out = Nights(tmp_path / "nights"), tmp_path / "pool"
    nights.folder.mkdir()
    for _ in range(2):
        assert write_pool(nights, out, tmp_path, tmp_path, tmp_path) == 0
    assert list(out.iterdir()) == [] and nights.promoted() == ""
    nights.promote(Night(3, pool_images=1))
    with pytest.raises(DatasetError, match="names the pool 0003/pool, which is not in"):
        write_pool(nights, out, tmp_path, tmp_path, tmp_path)
