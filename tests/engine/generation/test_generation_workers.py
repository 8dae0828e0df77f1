from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import make_settings, result, within
from stub_drawer import LOADER, StubDrawer

from engine.errors import ConfigError, RunFailed
from engine.generation.lock import Busy, lock
from engine.generation.plan_file import prepare
from engine.generation.run import merge, pending_shards, run_shard, verify
from engine.generation.source import DrawerSource
from engine.generation.worker_process import SILENT_S, ShardFailed, WorkerDied, WorkerNotStarted, WorkerProcess

# Generates into FOLDER/out, as a program of its own that can be killed.
PROGRAM = """
import sys
from pathlib import Path
from conftest import Bench
root = Path(sys.argv[1])
Bench(root, root / "data", root / "adapter").generate(workers=int(sys.argv[2]), shard_size=2)
"""


def start(bench, workers: int) -> subprocess.Popen:
    path = os.pathsep.join([os.getcwd(), str(Path(__file__).parent)])
    command = [sys.executable, "-c", PROGRAM, str(bench.root), str(workers)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    return value


def pids(bench) -> set[int]:
    log = bench.adapter / "drawn.log"
    return {int(line.split()[-1]) for line in log.read_text().splitlines()} if log.exists() else set()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def worker_of(bench, out: Path, silent_s=SILENT_S, **generation) -> WorkerProcess:
    source = DrawerSource(bench.data, "stub", bench.adapter, make_settings(**generation), LOADER)
    return WorkerProcess(source, out, silent_s=silent_s)


def planned(bench, **generation) -> Path:
    out = bench.root / "out"
    prepare(bench.data, out, 17, 1, make_settings(**generation), StubDrawer(bench.adapter).identity)
    return out


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1)])
def test_a_killed_run_resumed_with_other_workers_gives_the_same_bytes(bench, unbroken, before, after):
    bench.behave(sleep_s=0.05)
    run = start(bench, before)
    out = bench.root / "out"
    wait_for(lambda: len(list(out.glob("shards/[0-9]*"))) >= 3)
    run.kill()
    run.communicate()
    done = {path.parent.name: path.stat().st_ino for path in out.glob("shards/[0-9]*/shard.json")}
    assert 3 <= len(done) < 9
    bench.behave()
    bench.generate(workers=after)
    assert result(out) == result(unbroken) and verify(out) == []
    assert {name: (out / "shards" / name / "shard.json").stat().st_ino for name in done} == done


def test_workers_end_with_the_process_that_started_them(bench):
    bench.behave(sleep_s=60)  # deep in a batch, they see no closed pipe
    run = start(bench, 2)
    workers = wait_for(lambda: len(pids(bench)) == 2 and pids(bench))
    assert run.pid not in workers and all(map(alive, workers))
    run.kill()
    run.wait()  # not communicate(): that would wait for the workers, which hold stderr too
    wait_for(lambda: not any(map(alive, workers)), 30)
    run.stderr.close()


def test_a_worker_that_dies_is_replaced_and_its_shard_drawn_again(bench, unbroken):
    bench.behave(die_items=[3, 9])
    assert result(bench.generate(workers=2)) == result(unbroken)
    assert len(pids(bench)) == 4
    assert {path.name for path in bench.adapter.glob("died-*")} == {"died-3", "died-9"}


def test_a_shard_that_kills_every_worker_is_listed_and_the_others_are_done(bench, unbroken):
    bench.behave(die_items=[9], die_always=True)
    with pytest.raises(RunFailed, match=r"1 of 4 shards failed \(shard 1: WorkerDied: .*signal 9"):
        bench.generate(workers=2)
    out = bench.root / "out"
    assert pending_shards(out) == [1]
    assert not list((out / "shards").glob(".*"))  # nobody tidies up after a kill but the run itself
    bench.behave()
    assert result(bench.generate(workers=2)) == result(unbroken)


def test_a_worker_is_driven_from_threads_that_come_and_go(bench, unbroken):
    out = planned(bench)
    counts, progress = {}, []
    with worker_of(bench, out) as worker:
        assert worker.identity == StubDrawer(bench.adapter).identity
        pid = worker.pid
        for shard in (2, 0, 3, 1):
            thread = threading.Thread(
                target=lambda n=shard: counts.update({n: worker.run(n, progress=progress.append)})
            )
            thread.start()
            thread.join()
        assert worker.pid == pid and alive(pid)
        assert worker.run(2) == counts[2]  # done already: checked, not drawn
    assert not alive(pid)
    assert sum(progress) == 17 and sum(c.kept for c in counts.values()) == merge(out)["counts"]["kept"]
    assert result(out) == result(unbroken)
    with pytest.raises(WorkerDied, match="closed"):
        worker.run(0)


def test_a_worker_answers_with_errors_and_lives_on(bench):
    out = planned(bench)
    with worker_of(bench, out) as worker:
        with pytest.raises(ShardFailed, match="shard 99 is not one of the plan's 4"):
            worker.run(99)
        os.mkdir(out / "shards")
        os.chmod(out / "shards", 0o500)
        (out / "shards" / ".lock-00000").symlink_to("/proc/nowhere/lock")
        with pytest.raises(OSError) as caught:
            worker.run(0)
        assert caught.value.errno
        (out / "shards" / ".lock-00000").unlink()
        assert worker.run(1).planned == 5


def test_a_worker_that_was_killed_between_shards_is_started_again(bench, caplog):
    out = planned(bench)
    with worker_of(bench, out) as worker:
        first = worker.run(0) and worker.pid
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: not alive(first))
        with caplog.at_level(logging.WARNING):
            assert worker.run(1).planned == 5
        assert worker.pid != first and "a new one is started" in caplog.text


def test_a_worker_outlives_the_thread_that_had_to_start_it_again(bench):
    out = planned(bench)
    with worker_of(bench, out) as worker:
        worker.run(0)
        first = worker.pid
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: not alive(first))
        thread = threading.Thread(target=worker.run, args=(1,))
        thread.start()
        thread.join()
        second = worker.pid
        time.sleep(0.2)  # the kernel would have ended it by now
        assert alive(second) and worker.run(2).planned == 5 and worker.pid == second


def test_a_frozen_worker_is_killed_and_its_shard_drawn_by_a_new_one(bench, unbroken, caplog):
    out = planned(bench)
    bench.behave(sleep_s=0.3)
    with worker_of(bench, out, silent_s=6) as worker:

        def freeze() -> None:
            (frozen,) = wait_for(lambda: pids(bench))
            os.kill(frozen, signal.SIGSTOP)

        threading.Thread(target=freeze).start()
        frozen = worker.pid
        with pytest.raises(WorkerDied, match=r"no sign of life for 6 s in shard 0 \(signal 9\)"):
            within(60, worker.run, 0)
        assert f"Worker process {frozen} gave no sign of life for 6 s: it is killed" in caplog.text
        assert not alive(frozen)  # it held the lock of the shard
        bench.behave()
        for shard in range(4):
            worker.run(shard)
        assert worker.pid != frozen
    merge(out)
    assert result(out) == result(unbroken)


def test_a_worker_that_breathes_but_gets_nothing_done_is_killed(bench, unbroken, caplog):
    bench.behave(hang_items=[9])
    try:
        out = within(60, bench.generate, workers=2, stall_seconds=5)
    finally:
        for pid in pids(bench):
            with suppress(ProcessLookupError):  # as it should be
                os.kill(pid, signal.SIGKILL)
    assert "got nothing done for 5 s (generation.stall_seconds)" in caplog.text
    assert result(out) == result(unbroken) and len(pids(bench)) == 3


@pytest.mark.parametrize(("batch_size", "sleep_s", "stall_s"), [(1, 1.5, 5), (5, 8, 60)])
def test_slow_is_not_stuck(bench, batch_size, sleep_s, stall_s):
    """Five images of 1.5 s each, where 5 s are allowed for one; a batch that is longer than a process may be silent."""
    out = planned(bench, batch_size=batch_size)
    bench.behave(sleep_s=sleep_s)
    with worker_of(bench, out, silent_s=6, stall_seconds=stall_s) as worker:
        assert worker.run(0).planned == 5


def test_a_worker_that_never_gets_ready_is_given_up(bench):
    out = planned(bench)
    with worker_of(bench, out, silent_s=3) as worker:
        os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(WorkerNotStarted, match="no sign of life for 3 s before it was ready"):
            within(60, worker.run, 0)


def test_two_processes_on_one_folder_share_no_shard(bench, unbroken):
    bench.behave(sleep_s=0.05)
    runs = [start(bench, 1), start(bench, 1)]
    errors = [run.communicate(timeout=240)[1] for run in runs]
    out = bench.root / "out"
    drawn = bench.drawn()
    assert len(drawn) == len(set(drawn)) == 17
    assert 0 in {run.returncode for run in runs}
    for run, error in zip(runs, errors, strict=True):
        assert run.returncode == 0 or "in the hands of another live process" in error
    assert result(out) == result(unbroken) and verify(out) == []


def test_a_live_owner_keeps_its_shard(bench):
    out = planned(bench)
    with lock(out / "shards" / ".lock-00001", "Shard 1"):
        with pytest.raises(Busy, match=rf"Shard 1 .*process {os.getpid()} on .*Wait for it to end"):
            run_shard(out, 1, StubDrawer(bench.adapter))
        with pytest.raises(Busy):
            bench.generate()
        assert sorted(entry.name for entry in (out / "shards").glob("[0-9]*")) == ["00000", "00002", "00003"]
    bench.generate()
    assert verify(out) == []


def test_the_lock_of_a_dead_owner_is_taken_over_loudly(bench, caplog):
    """Even where its process id lives again: the id of this very process is in the file."""
    out = planned(bench)
    (out / "shards").mkdir()
    (out / "shards" / ".lock-00001").write_text(json.dumps({"pid": os.getpid(), "host": "here"}))
    with caplog.at_level(logging.WARNING):
        run_shard(out, 1, StubDrawer(bench.adapter))
    assert f"owner (process {os.getpid()} on here) ended without finishing; taken over" in caplog.text
    assert not (out / "shards" / ".lock-00001").exists()


def test_who_waits_for_a_lock_gets_it_in_turn(tmp_path):
    inside, most = [], []

    def work():
        for _ in range(25):
            with lock(tmp_path / "lock", "It", wait=True):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 100 and not (tmp_path / "lock").exists()


def test_no_worker_is_a_users_error(bench):
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        bench.generate(workers=0)
