"""SIGTERM: a run stops in order, what it finished stays, and nothing half done does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import make_settings, result
from s3_server import BUCKET, s3_server
from stub_drawer import LOADER, StubDrawer

from engine.generation.objects import open_objects
from engine.generation.plan_file import prepare
from engine.generation.run import look, run_shard
from engine.generation.source import DrawerSource
from engine.generation.worker_process import WorkerDied, WorkerProcess

# `de` with a drawer that needs no models.
PROGRAM = """
import functools, sys
import engine.generation.run as run
run.generate = functools.partial(run.generate, loader="stub_drawer:load")
from flows.cli import main
sys.argv[0] = "de"
main()
"""
SIZES = ["--images", "17", "--seed", "1", "--set", "generation.shard_size=2", "--set", "ldm.resolution=32"]
RULES = ["--set", "generation.ignore_threshold=0.2", "--set", "generation.score_threshold=0.4"]


def start(bench, *options: str) -> subprocess.Popen:
    path = os.pathsep.join([os.getcwd(), str(Path(__file__).parent)])
    folders = ["--data", str(bench.data), "--adapter", str(bench.adapter), "--out", str(bench.root / "out")]
    command = [sys.executable, "-c", PROGRAM, "generate", *folders, "--ldm", "stub", *SIZES, *RULES, *options]
    return subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": path}, stderr=subprocess.PIPE, text=True, cwd=bench.root
    )


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    return value


def stop(run: subprocess.Popen) -> None:
    run.send_signal(signal.SIGTERM)
    error = run.communicate(timeout=60)[1]
    lines = error.replace("\r", "\n").splitlines()
    said = [line for line in lines if line and "|" not in line and "a library that talks" not in line]
    assert run.returncode == 143, error
    assert said == ["Stopped by SIGTERM. What was finished is kept; the same command goes on from there."]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_is_told_to_stop_cleans_up(bench, unbroken, workers):
    bench.behave(sleep_s=0.3)
    out = bench.root / "out"
    run = start(bench, "--workers", str(workers))
    wait_for(lambda: list(out.glob("shards/[0-9]*/shard.json")) and list(out.glob("shards/.tmp-*")))
    stop(run)
    assert [path.name for path in (out / "shards").iterdir() if path.name.startswith(".")] == []
    found = look(out, verify=True)
    assert found.done >= 1 and not found.bad and found.todo == found.missing != []
    bench.behave()
    assert result(bench.generate()) == result(unbroken)


def test_a_run_on_a_store_that_is_told_to_stop_leaves_no_lease_and_no_attempt(bench, unbroken, monkeypatch):
    bench.behave(sleep_s=0.3)
    monkeypatch.setenv("TMPDIR", str(bench.root / "scratch"))
    (bench.root / "scratch").mkdir()
    with s3_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        store = f"s3://{BUCKET}/stopped"
        run = start(bench, "--store", store)
        objects = open_objects(store)
        wait_for(lambda: any(name.endswith(".json") for name in objects.names("shards")))
        wait_for(lambda: objects.names("leases"))
        stop(run)
        assert objects.names("leases") == []
        names = objects.names("shards")
        assert len([name for name in names if "-" in name]) == len([name for name in names if "-" not in name]) > 0
        assert [path for path in (bench.root / "scratch").rglob("*") if path.is_file()] == []
        bench.behave()
        assert result(bench.generate(store=store)) == result(unbroken)


def test_a_worker_process_that_is_told_to_stop_removes_its_work(bench):
    out = bench.root / "out"
    plan = prepare(bench.data, out, 17, 1, make_settings(), StubDrawer(bench.adapter).identity)
    bench.behave(sleep_s=1.0)
    source = DrawerSource(bench.data, "stub", bench.adapter, make_settings(), LOADER)
    with WorkerProcess(source, out) as worker:
        assert worker.identity

        def when_at_work():
            wait_for(lambda: list(out.glob("shards/.tmp-00001-*")))
            os.kill(worker.pid, signal.SIGTERM)

        import threading

        thread = threading.Thread(target=when_at_work)
        thread.start()
        with pytest.raises(WorkerDied, match="exit code 143"):
            worker.run(1)
        thread.join()
        assert list((out / "shards").iterdir()) == []
    bench.behave()
    assert run_shard(out, 1, StubDrawer(bench.adapter), plan=plan).planned == 5
