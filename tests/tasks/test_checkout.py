"""`de checkout`: versions come back whole, or not at all and with a word. Real git and DVC."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import version_workspace
from typer.testing import CliRunner
from version_workspace import DRAWN_OPTIONS, STAGE, draw_here

from engine.errors import ConfigError, RunConflict, RunFailed
from engine.generation.verify import verify
from flows.cli import app
from tasks.checkout import checkout

fresh, workspace = version_workspace.fresh, version_workspace.workspace


def contents(workspace) -> dict[str, str]:
    return {path.name: path.read_text() for path in (workspace.root / "generated").iterdir()}


def two_versions(workspace) -> tuple[dict[str, str], dict[str, str]]:
    """toy-v1 with three files and toy-v2 with five, which is there; the content of each."""
    workspace.step()
    workspace.record(dataset="toy")
    old = contents(workspace)
    (workspace.root / "params.yaml").write_text("generation:\n  steps: 30\n")
    workspace.write_stage(cmd=STAGE["cmd"].replace("--images 3", "--images 5"))
    workspace.step(5)
    workspace.record(images=5, dataset="toy")
    return old, contents(workspace)


def cached(workspace, file: Path) -> Path:
    md5 = hashlib.md5(file.read_bytes()).hexdigest()
    return workspace.root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]


def spoil(path: Path, content: bytes = b"junk") -> None:
    path.chmod(0o600)
    path.write_bytes(content)
    path.chmod(0o444)  # as DVC leaves its objects: it believes them


def test_versions_come_back_and_head_stays_where_it_is(workspace):
    old, new = two_versions(workspace)
    head = workspace.sh("git", "rev-parse", "HEAD")
    restored = checkout("toy-v1", workspace.root)
    assert contents(workspace) == old and (workspace.root / "metrics.json").read_text() == '{"images": 3}'
    assert (restored.outputs, restored.files) == (("generated", "metrics.json"), 3)
    assert "params.yaml" in restored.differs and "steps: 30" in (workspace.root / "params.yaml").read_text()
    assert workspace.sh("git", "rev-parse", "HEAD") == head
    assert checkout("toy-v2", workspace.root).differs is None
    assert contents(workspace) == new and "up to date" in workspace.dvc("status")
    assert workspace.sh("git", "status", "--porcelain") == ""


def test_an_unknown_version_is_one_message_that_lists_what_there_is(workspace, monkeypatch):
    workspace.step()
    workspace.record(dataset="toy")
    for name in ("toy-v7", "-f", "--all", "HEAD", "toy-v1 "):
        with pytest.raises(ConfigError, match="Versions: toy-v1"):
            checkout(name, workspace.root)
    monkeypatch.chdir(workspace.root)
    result = CliRunner().invoke(app, ["checkout", "coco-de-v3"])
    assert (result.exit_code, result.stderr) == (2, "There is no version 'coco-de-v3'. Versions: toy-v1.\n")
    workspace.write_stage()
    (workspace.root / "dvc.yaml").write_text("stages: {}\n")
    with pytest.raises(ConfigError, match="stage 'generate', which dvc.yaml no longer has"):
        checkout("toy-v1", workspace.root)


@pytest.mark.slow
def test_changes_that_are_in_no_version_are_kept_unless_they_are_given_up(workspace):
    old, _ = two_versions(workspace)
    (workspace.root / "generated" / "0.txt").write_text("my own work")
    before, lock = contents(workspace), (workspace.root / "dvc.lock").read_bytes()
    with pytest.raises(RunConflict, match=r"generated \(modified\) would be overwritten.*--force"):
        checkout("toy-v1", workspace.root)
    assert contents(workspace) == before and (workspace.root / "dvc.lock").read_bytes() == lock
    checkout("toy-v1", workspace.root, force=True)
    assert contents(workspace) == old
    (workspace.root / "generated" / "0.txt").unlink()  # to take something away is a change too
    with pytest.raises(RunConflict):
        checkout("toy-v2", workspace.root)
    shutil.rmtree(workspace.root / "generated")  # with nothing there, there is nothing to lose
    (workspace.root / "metrics.json").write_text("a figure of mine")
    with pytest.raises(RunConflict, match=r"metrics.json \(not committed to git\)"):
        checkout("toy-v1", workspace.root)
    (workspace.root / "metrics.json").unlink()
    checkout("toy-v1", workspace.root)
    assert contents(workspace) == old


@pytest.mark.slow
def test_what_the_cache_lacks_comes_from_the_remote_or_is_named(workspace, tmp_path):
    workspace.dvc("remote", "add", "-d", "far", str(tmp_path / "store"))
    old, _ = two_versions(workspace)
    shutil.rmtree(workspace.root / ".dvc" / "cache")
    workspace.dvc("commit", "-f", "generate")  # what is there now is cached; v1 is only in the remote
    checkout("toy-v1", workspace.root)
    assert contents(workspace) == old
    (gone,) = [path for path in (tmp_path / "store").rglob("*") if path.is_file() and "4 of 30" in path.read_text()]
    shutil.rmtree(workspace.root / ".dvc" / "cache")
    workspace.dvc("commit", "-f", "generate")
    gone.unlink()
    with pytest.raises(RunFailed, match=r"Nothing was changed.*toy-v2.*fetching failed: 2 files failed"):
        checkout("toy-v2", workspace.root)
    assert contents(workspace) == old


def test_a_damaged_object_is_named_before_anything_is_overwritten_and_replaced_from_the_remote(workspace, tmp_path):
    workspace.dvc("remote", "add", "-d", "far", str(tmp_path / "store"))
    workspace.step()
    damaged = workspace.root / "generated" / "1.txt"
    workspace.record(dataset="toy")
    old, damaged = contents(workspace), cached(workspace, damaged)
    (workspace.root / "generated" / "extra.txt").write_text("more")
    workspace.record(dataset="toy")
    new = contents(workspace)
    spoil(damaged)
    with pytest.raises(RunFailed) as told:
        checkout("toy-v1", workspace.root)
    assert "generated/1.txt" in str(told.value) and str(damaged) in str(told.value) and "Delete" in str(told.value)
    assert contents(workspace) == new
    damaged.unlink()
    checkout("toy-v1", workspace.root)
    assert contents(workspace) == old
    listing = next((workspace.root / ".dvc" / "cache").rglob("*.dir"))
    spoil(listing, b"[]")
    with pytest.raises(RunFailed, match=listing.name):
        checkout("toy-v1", workspace.root)
        checkout("toy-v2", workspace.root)


@pytest.mark.slow
def test_a_dataset_that_was_not_whole_when_it_was_recorded_is_not_called_whole(workspace):
    out = draw_here(workspace)
    image = next((out / "images").iterdir())
    content = image.read_bytes()
    image.unlink()  # it is a link to its shard's
    image.write_bytes(content[:-1] + b"?")
    workspace.record(dataset="coco-de", **DRAWN_OPTIONS)
    shutil.rmtree(out)
    with pytest.raises(RunFailed, match=f"images/{image.name} has changed"):
        checkout("coco-de-v1", workspace.root)
    out.joinpath("images", image.name).write_bytes(content)
    workspace.record(dataset="coco-de", **DRAWN_OPTIONS)
    shutil.rmtree(out)
    assert checkout("coco-de-v2", workspace.root).files == len([p for p in out.rglob("*") if p.is_file()])
    assert verify(out) == [] and (out / "CARD.md").is_file()


@pytest.mark.slow
def test_a_checkout_that_was_killed_goes_on_without_force(workspace):
    old, _ = two_versions(workspace)
    code = "import sys; from pathlib import Path; from tasks.checkout import checkout; "
    code += "checkout('toy-v1', Path(sys.argv[1]))"
    command, lock = [sys.executable, "-c", code, str(workspace.root)], workspace.root / "dvc.lock"
    before = lock.read_bytes()
    first = subprocess.Popen(command, cwd=Path(__file__).parents[2], start_new_session=True)
    end = time.monotonic() + 120
    while lock.read_bytes() == before:  # from here on it takes DVC a second to begin
        assert time.monotonic() < end and first.poll() is None
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert contents(workspace) != old
    mine = workspace.root / "generated" / "mine.txt"
    mine.write_text("came after the kill, and is nowhere else")
    with pytest.raises(RunConflict):
        checkout("toy-v1", workspace.root)
    mine.unlink()
    checkout("toy-v1", workspace.root)
    assert contents(workspace) == old


def test_an_empty_lock_file_gets_a_message_with_the_cure(workspace):
    workspace.step()
    workspace.record(dataset="toy")
    lock = workspace.root / ".dvc" / "tmp" / "rwlock"
    lock.write_bytes(b"")
    with pytest.raises(RunFailed, match=r"rwlock is empty.*delete that file"):
        checkout("toy-v1", workspace.root)
