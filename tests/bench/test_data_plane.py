"""The bench of the data plane runs, in small, and its figures mean what they say."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "bench" / "data_plane.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("data_plane", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_case_runs_in_small(bench):
    done = subprocess.run([sys.executable, str(SCRIPT), "--quick"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for case, (_, sizes, counted) in bench.SIZES.items():
        for size in sizes:
            assert f"| {case} | {size:,} {counted} |" in done.stdout
    assert done.stdout.count("identical metrics") == 2 and "DIFFERENT" not in done.stdout


def test_the_shards_are_what_the_generation_takes_for_done(bench, tmp_path):
    bench.build_shards(25, tmp_path, 10)
    assert bench.scan(3, tmp_path)["answer"] == 0
    (tmp_path / "run" / "shards" / "00001" / "images" / "000000012.jpg").unlink()
    assert bench.scan(3, tmp_path)["answer"] == 1


def test_exponents(bench):
    assert bench.exponent([(10, 3.0), (100, 30.0), (1000, 300.0)]) == pytest.approx(1.0)
    assert bench.exponent([(10, 3.0), (100, 300.0)]) == pytest.approx(2.0)
    assert bench.exponent([(10, 3.0), (100, 0)]) is None


def test_memory_is_the_childs_own(bench, tmp_path):
    """A child begins with its parent's ru_maxrss; what is reported must not."""
    bench.build_source(tmp_path / "data")
    bench.prepared(50, tmp_path)
    ballast = bytearray(300 << 20)
    answer = bench.in_child("load plan", 0, tmp_path)
    del ballast
    assert answer["answer"] == 50 and answer["peak_bytes"] < 250e6


def test_the_recorded_results_are_of_this_bench(bench):
    recorded = {case["case"]: case["rows"] for case in json.loads(bench.RESULTS.read_text())["cases"]}
    assert recorded and recorded.keys() <= bench.SIZES.keys()
    assert all([row["size"] for row in rows] == list(bench.SIZES[case][0]) for case, rows in recorded.items())
    answers = [[row["answer"] for row in rows] for case, rows in recorded.items() if case.startswith("evaluate")]
    assert len(answers) == 2 and answers[0] == answers[1]
