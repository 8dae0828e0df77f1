"""A real git and DVC workspace; only the step itself is a stand-in for `de generate`."""

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
from version_workspace import OPTIONS, STAGE, draw_dataset

from engine.errors import ConfigError, RunConflict, RunFailed
from engine.generation.verify import verify
from tasks.version import record

fresh, workspace = version_workspace.fresh, version_workspace.workspace


def test_after_a_recorded_run_status_is_clean_and_repro_has_nothing_to_do(workspace):
    workspace.step()
    recorded = workspace.record()
    assert (recorded.skipped, recorded.tag) == (None, None)
    assert "up to date" in workspace.dvc("status")
    workspace.dvc("repro")
    assert workspace.runs() == 1
    (workspace.root / "params.yaml").write_text("generation:\n  steps: 21\n")
    workspace.dvc("repro")
    assert workspace.runs() == 2  # so it is the record that held it back before
    assert "21 steps" in (workspace.root / "generated" / "0.txt").read_text()


def test_an_older_version_comes_back_by_its_tag(workspace):
    workspace.step()
    assert workspace.record(dataset="coco-de").tag == "coco-de-v1"
    old = {path.name: path.read_text() for path in (workspace.root / "generated").iterdir()}
    (workspace.root / "params.yaml").write_text("generation:\n  steps: 30\n")
    workspace.write_stage(cmd=STAGE["cmd"].replace("--images 3", "--images 5"))
    workspace.step(5)
    assert workspace.record(images=5, dataset="coco-de").tag == "coco-de-v2"
    assert (
        workspace.sh("git", "status", "--porcelain") == "" and len(list((workspace.root / "generated").iterdir())) == 5
    )
    workspace.sh("git", "checkout", "-q", "coco-de-v1")
    workspace.dvc("checkout")
    assert {path.name: path.read_text() for path in (workspace.root / "generated").iterdir()} == old
    assert "up to date" in workspace.dvc("status")
    assert (workspace.root / "metrics.json").read_text() == '{"images": 3}'
    workspace.sh("git", "checkout", "-q", "coco-de-v2")
    workspace.dvc("checkout")
    assert len(list((workspace.root / "generated").iterdir())) == 5


@pytest.mark.parametrize(
    ("overrides", "options", "named"),
    [
        (["generation.steps=30"], {}, "generation.steps: 30 (stage: 20)"),
        ([], {"images": 8}, "--images: 8 (stage: 3)"),
        ([], {"seed": 1}, "--seed: 1 (stage: 0)"),
        ([], {"ldm": "other"}, "--ldm: "),
    ],
)
def test_a_run_with_other_settings_is_refused(workspace, overrides, options, named):
    workspace.step()
    with pytest.raises(RunConflict) as refused:
        workspace.record(*overrides, **options)
    assert named in str(refused.value) and not (workspace.root / "dvc.lock").exists()


def test_settings_that_the_stage_does_not_depend_on_and_workers_do_not_matter(workspace):
    workspace.step()
    assert workspace.record("compare.seeds=9", workers=7).skipped is None


def test_a_run_elsewhere_is_no_version_of_the_stage(workspace):
    assert "the run wrote other" in workspace.record(out="other").skipped


def test_inside_repro_nothing_is_recorded(workspace, monkeypatch):
    monkeypatch.setenv("DVC_STAGE", "generate")
    assert "DVC itself" in workspace.record().skipped and not (workspace.root / "dvc.lock").exists()


def test_without_a_workspace_or_stage_it_is_skipped_and_said(workspace, tmp_path):
    assert "is no DVC workspace" in record("generate", OPTIONS, workspace.settings(), tmp_path).skipped
    assert record("dance", OPTIONS, workspace.settings(), workspace.root).skipped == "dvc.yaml has no stage 'dance'"


def test_an_empty_lock_file_gets_a_message_with_the_cure(workspace):
    workspace.step()
    lock = workspace.root / ".dvc" / "tmp" / "rwlock"
    lock.parent.mkdir(exist_ok=True)
    lock.touch()
    with pytest.raises(RunFailed, match=r"rwlock is empty.*delete that file"):
        workspace.record()
    assert not (workspace.root / "dvc.lock").exists()


def test_missing_outputs_end_in_one_message(workspace):
    with pytest.raises(RunFailed, match="Could not commit stage 'generate'"):
        workspace.record()


def test_a_command_that_cannot_be_compared_is_refused(workspace):
    for command in ("de generate --out generated --images ${demo.images}", "make all", "de generate generated"):
        workspace.write_stage(cmd=command)
        with pytest.raises(ConfigError, match="stage 'generate'"):
            workspace.record()


def test_a_hostile_version_name_becomes_no_tag(workspace):
    workspace.step()
    for name in ("-f", "a b", "x; touch PWNED", "../x"):
        with pytest.raises(ConfigError):
            workspace.record(dataset=name)
    assert workspace.sh("git", "tag") == ""


# The real `de`; only the drawer is a stand-in.
DE = """#!{python}
import functools, sys
sys.path[:0] = {folders!r}
import engine.generation.run as run
run.generate = functools.partial(run.generate, loader="stub_drawer:load")
from flows.cli import main
main()
"""
DRAWN = (
    "de generate --data ../data --ldm stub --adapter ../adapter --out generated --images 8 --seed 0 "
    "--set generation.shard_size=1 --set ldm.resolution=32 --set generation.keep_negatives=true"
)


def drawings(log: Path) -> list[tuple[int, int]]:
    """(item, process id) of what was begun."""
    return [tuple(map(int, line.split())) for line in log.read_text().splitlines()] if log.exists() else []


def wait_for(condition, seconds=120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize("kill", [os.killpg, os.kill])
def test_a_repro_killed_in_the_middle_keeps_what_was_finished(workspace, tmp_path, kill):
    """With its step, and alone: then the step lives on, and the next one shares no shard with it."""
    out, log = workspace.root / "generated", tmp_path / "adapter" / "drawn.log"
    draw_dataset(tmp_path, tmp_path / "unbroken", 8, "generation.steps=20")
    log.unlink()
    folders = [str(Path(__file__).parents[2]), version_workspace.STAND_IN]
    (workspace.root / "bin" / "de").write_text(DE.format(python=sys.executable, folders=folders))
    workspace.write_stage(cmd=DRAWN, deps=["../data"], metrics=[])
    (tmp_path / "adapter" / "behaviour.json").write_text('{"gate_from": 3}')  # until there is a file `open`
    command, words = [sys.executable, "-m", "dvc", "repro"], {"cwd": workspace.root, "text": True}
    repro = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, **words)
    wait_for(lambda: len(drawings(log)) == 3)
    kill(repro.pid, signal.SIGKILL)
    repro.wait()
    first = out / "shards" / "00000" / "shard.json"
    before = first.stat().st_ino
    assert not (workspace.root / "dvc.lock").exists()
    again = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **words)
    wait_for(lambda: len({pid for _, pid in drawings(log)}) == 2)
    (tmp_path / "adapter" / "open").touch()
    error, end = again.communicate(timeout=120)[1], time.monotonic() + 120
    while again.returncode:
        assert kill is os.kill and "in the hands of another live process" in error, error
        assert time.monotonic() < end
        again = subprocess.run(command, capture_output=True, **words)
        error = again.stderr
    assert first.stat().st_ino == before  # persist: true, and the step went on
    twice = [3] if kill is os.killpg else []  # it was in hand
    assert sorted(item for item, _ in drawings(log)) == sorted([*range(1, 9), *twice])
    name = "annotations.json"
    assert (out / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes() and verify(out) == []
    assert "up to date" in workspace.dvc("status")


def test_a_corrupted_cache_object_does_not_pass_the_dataset_check(workspace, tmp_path):
    """DVC delivers what its cache holds, junk too, and says nothing: the dataset's own manifest must."""
    draw_dataset(tmp_path, workspace.root / "generated")
    workspace.write_stage(metrics=[])
    workspace.record()
    image = next((workspace.root / "generated" / "images").iterdir())
    md5 = hashlib.md5(image.read_bytes()).hexdigest()
    cached = workspace.root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
    cached.chmod(0o600)
    cached.write_bytes(b"junk")
    shutil.rmtree(workspace.root / "generated")
    workspace.dvc("checkout")
    problems = verify(workspace.root / "generated")
    assert any(image.name in problem for problem in problems)
