"""`de demo` as a user types it, at the smallest size: every part is real, only the numbers mean nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DE = str(Path(sys.executable).with_name("de"))
TINY = """
adapter: {steps: 4, batch_size: 2}
generation: {steps: 4, shard_size: 4, batch_size: 4, keep_negatives: true}
detector: {steps: 3, batch_size: 2, width: 32, convs: 1}
compare: {seeds: 2, bootstrap: 20}
demo: {train_images: 8, unlabelled_images: 4, val_images: 8, test_images: 8, generated_images: 8}
"""


@pytest.mark.slow
def test_demo_leaves_its_results_and_goes_on_where_it_stopped(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment |= {"HOME": str(tmp_path / "home"), "DE_HOME": str(tmp_path / "home")}

    def demo(*words: str) -> subprocess.CompletedProcess:
        command = [DE, "demo", "--out", "out", "--params", "tiny.yaml", *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)

    done = demo()
    assert done.returncode == 0, done.stderr[-3000:]
    assert "mAP" in done.stdout and "out/report.html" in done.stdout and "Traceback" not in done.stderr
    out = tmp_path / "out"
    results = json.loads((out / "results.json").read_text())
    assert {len(arm["map"]) for arm in results["arms"].values()} == {2} == {len(results["seeds"])}
    assert results["searched_with"] == "world" and results["leakage"]["generated"]
    assert {"mean", "ci95"} <= set(results["delta"]) and {"settings", "versions"} <= set(results)
    manifest = json.loads((out / "generated" / "manifest.json").read_text())
    assert manifest["counts"]["planned"] == 8 and (out / "generated" / "annotations.json").exists()
    assert "<html" in (out / "report.html").read_text().lower()
    assert not (tmp_path / "home" / ".prefect").exists()  # the user's own Prefect is left alone
    times = {
        path: path.stat().st_mtime_ns
        for path in [*(out / "generated" / "shards").rglob("*"), *(out / "adapter").iterdir()]
    }
    assert demo().returncode == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times
    other = demo("--seed", "3")
    assert other.returncode == 2 and "holds a world of" in other.stderr and "Traceback" not in other.stderr
