"""`de tune` on the embedded world, from an adapter to a settings file."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from engine.config import load_settings
from engine.data.world_folder import write_world
from flows.cli import app

SMALL = [
    *("adapter.steps=2", "adapter.batch_size=4", "adapter.width=32", "adapter.cache_views=1"),
    *("detector.steps=1", "detector.width=32", "detector.convs=1", "detector.batch_size=4"),
    *(
        "review.box_count_factor=1000",
        "generation.steps=4",
        "generation.score_threshold=0.1",
        "generation.ignore_threshold=0.1",
    ),
]


def run(*arguments):
    settings = [word for text in SMALL for word in ("--set", text)]
    return CliRunner().invoke(app, [*map(str, arguments), "--ldm", "world", *settings])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune")
    write_world(folder / "world", 12, 4, 2, seed=3)
    result = run("train-adapter", "--data", folder / "world", "--out", folder / "adapter")
    assert result.exit_code == 0, result.output
    return folder


@pytest.mark.slow
def test_tuning_writes_settings_and_needs_no_test_split(workspace, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flows.tune_pool.FLOOR", 0.01)  # of an adapter that has learned next to nothing
    monkeypatch.setattr("flows.tune.SHARES", (0.5,))  # few candidates: each training is a process
    monkeypatch.setattr("flows.tune_pool.PRECISIONS", (0.75,))
    (workspace / "world" / "test.json").unlink()
    given = ("tune", "--data", workspace / "world", "--adapter", workspace / "adapter", "--out", "tune")
    short = run(*given, "--images", "32", "--minutes", "0.1")
    assert short.exit_code == 2 and "--minutes" in short.output, short.output
    done = run(*given, "--images", "32", "--minutes", "5")
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "tune" / "tune.json").read_text())
    assert len(report["trials"]) >= 3 and len(report["trials"][0]["map"]) == 5
    assert all(trial["strength_max"] <= 0.8 for trial in report["trials"])
    tuned = load_settings(params=tmp_path / "tune" / "tuned.yaml")
    assert tuned.compare.generated_share == report["trials"][0]["share"]
    assert tuned.generation.score_threshold == report["trials"][0]["score"]
    assert (tuned.generation.strength_min, tuned.generation.guidance_min) == (0.1, 1.0), "as the pool was drawn"
    assert "| gain |" in done.output
    other = run(*given, "--images", "48", "--minutes", "5")
    assert other.exit_code == 2 and "holds a tuning with other images" in other.output
