"""What is known of a version: its file, the list of versions, comparisons and verdicts. Real git and DVC."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import version_workspace
from typer.testing import CliRunner
from version_workspace import DRAWN_OPTIONS, OPTIONS, draw_here, results_on

from engine.data.files import file_sha256
from engine.errors import ConfigError, DatasetError, RunConflict, RunFailed
from engine.evaluation.results import write_results
from engine.generation.contents import generated_content
from engine.generation.verify import verify
from flows.cli import app
from tasks.verdict import note_comparison, set_verdict
from tasks.version import name_version
from tasks.version_list import list_versions, tag_of

fresh, workspace = version_workspace.fresh, version_workspace.workspace
RECORD = """
import json, sys
from contextlib import suppress
from pathlib import Path
from engine.config import load_settings
from tasks.version import record
root = Path(sys.argv[1])
print(record("generate", json.loads(sys.argv[2]), load_settings(root / "params.yaml"), root, "coco-de").tag)
"""


def start_record(root: Path, **words) -> subprocess.Popen:
    """A recording in a process of its own, with a group of its own."""
    command = [sys.executable, "-c", RECORD, str(root), json.dumps(OPTIONS)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], start_new_session=True, text=True, **words)


def tags(workspace) -> list[str]:
    return workspace.sh("git", "tag").split()


def test_a_generated_dataset_becomes_a_version_that_says_what_it_is(workspace, monkeypatch):
    out = draw_here(workspace)
    (workspace.root / "real" / "data" / "LICENSE").write_text("MIT License\n")
    assert workspace.record(dataset="coco-de", **DRAWN_OPTIONS).tag == "coco-de-v1"
    (version,) = list_versions(workspace.root)
    files = [path for path in out.rglob("*") if path.is_file()]
    assert (version.name, version.stage, version.kind) == ("coco-de-v1", "generate", "generated dataset")
    assert (version.files, version.size_bytes) == (len(files), sum(path.stat().st_size for path in files))
    assert version.content == generated_content(out) and len(version.date) >= 19
    assert (version.verdict, version.metrics) == ("candidate", {})
    manifest = json.loads((out / "manifest.json").read_text())
    assert version.parents["data"]["sha256"] == manifest["data"] and version.parents["data"]["md5"].endswith(".dir")
    assert version.parents["ldm"] == {"given": "stub", "id": "stub"}
    card = (out / "CARD.md").read_text()
    assert card.startswith("# coco-de-v1\n") and "MIT License (LICENSE)" in card and verify(out) == []
    assert "up to date" in workspace.dvc("status") and workspace.sh("git", "status", "--porcelain", "-uno") == ""
    assert json.loads(workspace.sh("git", "show", "coco-de-v1:versions/coco-de-v1.json"))["name"] == "coco-de-v1"
    # Recorded again it is the same version; with other decisions it is another one, whose parents are known.
    assert workspace.record(dataset="coco-de", **DRAWN_OPTIONS).tag == "coco-de-v1"
    (out / "decisions.json").write_text(
        json.dumps({"accepted": [1], "rejected": {}, "digest": file_sha256(out / "annotations.json")})
    )
    assert workspace.record(dataset="coco-de", **DRAWN_OPTIONS).tag == "coco-de-v2"
    assert (out / "CARD.md").read_text().startswith("# coco-de-v2\n")
    assert tag_of(generated_content(out), workspace.root) == "coco-de-v2"
    assert tag_of(version.content, workspace.root) == "coco-de-v1"
    assert tag_of({**version.content, "plan": "0"}, workspace.root) is None is tag_of({}, workspace.root)
    monkeypatch.chdir(workspace.root)
    table = CliRunner().invoke(app, ["versions"]).output
    assert "coco-de-v1" in table and "candidate: recorded" in table and "data real/data (" in table
    listed = json.loads(CliRunner().invoke(app, ["versions", "--json"]).output)
    assert [entry["name"] for entry in listed] == ["coco-de-v1", "coco-de-v2"]


def test_comparisons_and_verdicts_are_noted_on_the_version_and_leave_the_tag_alone(workspace, monkeypatch):
    out, compared = draw_here(workspace), workspace.root / "comparison"
    write_results(compared / "results.json", results_on(generated_content(out)))
    assert note_comparison(compared, workspace.root) == []  # no version yet
    workspace.record(dataset="coco-de", **DRAWN_OPTIONS)
    (workspace.root / "params.yaml").write_text("generation:\n  steps: 20\n\n")  # work of the user, which stays theirs
    tagged = workspace.sh("git", "rev-parse", "coco-de-v1^{commit}")
    assert note_comparison(compared, workspace.root) == ["coco-de-v1"] == note_comparison(compared, workspace.root)
    noted = list_versions(workspace.root)[0].metrics["comparison"]
    assert (noted["difference"], noted["outcome"], noted["detector"]) == (0.012, "cannot tell", "small")
    set_verdict("coco-de-v1", "promoted", "as good as\n v0", workspace.root)
    (version,) = list_versions(workspace.root)
    assert (version.verdict, version.reason) == ("promoted", "as good as v0") and version.metrics["comparison"] == noted
    assert workspace.sh("git", "rev-parse", "coco-de-v1^{commit}") == tagged
    subjects = workspace.sh("git", "log", "--format=%s", "-3").splitlines()
    assert subjects == ["coco-de-v1: promoted", "coco-de-v1: compared", "coco-de-v1: stage generate"]
    assert workspace.sh("git", "status", "--porcelain", "-uno").strip() == "M params.yaml"
    write_results(compared / "results.json", results_on({"plan": "another"}))
    for words in (("coco-de-v1", "rejected", "other data", workspace.root, compared),):
        with pytest.raises(DatasetError, match="is not of coco-de-v1"):
            set_verdict(*words)
    for name, verdict, reason in (
        ("coco-de-v9", "promoted", "x"),
        ("coco-de-v1", "good", "x"),
        ("coco-de-v1", "promoted", " "),
    ):
        with pytest.raises(ConfigError):
            set_verdict(name, verdict, reason, workspace.root)
    monkeypatch.chdir(workspace.root)
    table = CliRunner().invoke(app, ["versions"]).output
    assert "+1.2 (+0.2 to +2.2)" in table and "promoted: as good as v0" in table


def test_a_comparison_in_the_workspace_is_known_when_the_version_is_made(workspace):
    out = draw_here(workspace)
    write_results(workspace.root / "results.json", results_on(generated_content(out)))
    workspace.write_stage(**version_workspace.DRAWN_STAGE | {"metrics": [{"results.json": {"cache": False}}]})
    workspace.record(dataset="coco-de", **DRAWN_OPTIONS)
    assert list_versions(workspace.root)[0].metrics["comparison"]["difference"] == 0.012


def test_what_repro_wrote_becomes_a_version_only_while_it_is_up_to_date(workspace):
    workspace.dvc("repro")
    assert name_version("generate", "toy", workspace.root).tag == "toy-v1"
    (workspace.root / "generated" / "0.txt").write_text("changed")
    with pytest.raises(RunConflict, match="not up to date.*dvc commit generate"):
        name_version("generate", "toy", workspace.root)
    with pytest.raises(ConfigError, match="no stage 'dance'"):
        name_version("dance", "toy", workspace.root)
    assert tags(workspace) == ["toy-v1"]


def test_old_tags_are_listed_foreign_ones_are_not_and_a_torn_file_falls_back_on_the_tag(workspace):
    workspace.step()
    workspace.record(dataset="toy")
    workspace.sh("git", "tag", "-a", "old-v3", "-m", "old-v3: outputs of stage generate")
    workspace.sh("git", "tag", "release-v2")
    (workspace.root / "versions" / "toy-v1.json").write_text('{"format": 1')
    old, toy = list_versions(workspace.root)
    assert (old.name, old.stage, old.kind) == ("old-v3", "generate", "unknown") and "only the stage" in old.note
    assert (toy.name, toy.files) == ("toy-v1", 4) and "git checkout toy-v1 -- versions/toy-v1.json" in toy.note
    (workspace.root / "versions" / "toy-v1.json").unlink()
    assert list_versions(workspace.root)[1].note == ""


def test_without_git_there_is_one_message(tmp_path):
    with pytest.raises(ConfigError, match="in no git repository"):
        list_versions(tmp_path)
    assert tag_of({"plan": "x"}, tmp_path) is None


def test_two_recordings_at_once_make_one_version(workspace):
    workspace.step()
    both = [start_record(workspace.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    ends = [process.communicate(timeout=300) for process in both]
    assert [out.strip() for out, _ in ends] == ["coco-de-v1"] * 2, ends
    assert tags(workspace) == ["coco-de-v1"] and "up to date" in workspace.dvc("status")
    assert workspace.sh("git", "status", "--porcelain") == "" and not list(workspace.root.glob(".dvc/tmp/de-*"))


def bury_orphans(seconds: float = 5.0) -> None:
    """A test of the supervisor may have made this process the parent of orphans, as init is otherwise: one that nobody
    waits for stays in the process table, and DVC takes it for alive."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for process in psutil.Process().children():
            with suppress(psutil.Error, ChildProcessError):
                if process.status() == psutil.STATUS_ZOMBIE:
                    os.waitpid(process.pid, os.WNOHANG)
        time.sleep(0.5)


def test_a_recording_killed_in_the_middle_of_the_commit_is_healed_by_the_next(workspace):
    workspace.step()
    for number in range(3000):  # so that the commit takes a while
        (workspace.root / "generated" / f"more-{number}").write_text(str(number))
    cache = workspace.root / ".dvc" / "cache" / "files" / "md5"
    first = start_record(workspace.root, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not any(cache.glob("*/*")):
        assert time.monotonic() < end and first.poll() is None
        time.sleep(0.005)
    os.killpg(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL and tags(workspace) == []
    bury_orphans()
    assert not list(cache.glob("*/*.dir"))  # it was in the middle
    assert workspace.record(dataset="coco-de").tag == "coco-de-v1"
    assert "up to date" in workspace.dvc("status") and list_versions(workspace.root)[0].files == 3004


def test_a_recording_cut_off_between_commit_and_tag_is_healed_by_the_next(workspace):
    workspace.step()
    workspace.record(dataset="coco-de")
    head = workspace.sh("git", "rev-parse", "HEAD")
    workspace.sh("git", "tag", "-d", "coco-de-v1")
    assert workspace.record(dataset="coco-de").tag == "coco-de-v1"
    assert workspace.sh("git", "rev-parse", "HEAD") == head


def test_gits_own_lock_ends_in_gits_words_and_the_next_recording_heals(workspace):
    workspace.step()
    (workspace.root / ".git" / "index.lock").touch()
    with pytest.raises(RunFailed, match="index.lock"):
        workspace.record(dataset="coco-de")
    assert tags(workspace) == []
    (workspace.root / ".git" / "index.lock").unlink()
    assert workspace.record(dataset="coco-de").tag == "coco-de-v1"


def test_a_remote_that_cannot_be_reached_loses_nothing_and_is_told(workspace, tmp_path):
    workspace.step()
    (tmp_path / "no-folder").write_text("")
    workspace.dvc("remote", "add", "-d", "far", str(tmp_path / "no-folder" / "store"))
    recorded = workspace.record(dataset="coco-de")
    assert recorded.tag == "coco-de-v1" and "dvc push generate" in recorded.unpushed
    assert "up to date" in workspace.dvc("status") and tags(workspace) == ["coco-de-v1"]
    (tmp_path / "no-folder").unlink()
    assert workspace.record(dataset="coco-de").unpushed is None  # the same again pushes
    assert len(list((tmp_path / "no-folder").rglob("*.dir"))) == 1
