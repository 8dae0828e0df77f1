from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from engine.errors import RunFailed
from tasks.supervisor import Child, Supervisor

SLEEP = "import time; time.sleep(600)"


@pytest.fixture
def supervisor():
    made = Supervisor(max_restarts=2, pause=0.0)
    yield made
    made.stop(grace=5)


def child(folder: Path, code: str, name="worker") -> Child:
    return Child(name, [sys.executable, "-c", code], dict(os.environ), folder / f"{name}.log", folder)


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return value


def test_a_killed_child_is_started_again(supervisor, tmp_path):
    one = child(tmp_path, SLEEP)
    supervisor.start(one)
    assert supervisor.check() == []
    first = one.process.pid
    one.process.kill()
    one.process.wait()
    assert supervisor.check() == ["worker"]
    assert one.alive and one.process.pid != first


def test_one_that_keeps_dying_is_given_up_with_its_last_words(supervisor, tmp_path):
    one = child(tmp_path, "raise SystemExit('the port is gone')")
    supervisor.start(one)
    for _ in range(2):
        one.process.wait()
        supervisor.check()
    one.process.wait()
    with pytest.raises(RunFailed, match="(?s)worker died 3 times.*the port is gone"):
        supervisor.check()


def test_restarts_are_further_and_further_apart_and_an_optional_child_is_never_given_up(tmp_path):
    patient = Supervisor(max_restarts=1, pause=0.2)
    one = child(tmp_path, "raise SystemExit('not yet')")
    one.essential = False
    patient.start(one)
    while len(one.starts) < 5:
        patient.check()
        time.sleep(0.002)
    waits = [later - earlier for earlier, later in zip(one.starts, one.starts[1:], strict=False)]
    assert all(wait >= pause for wait, pause in zip(waits, [0, 0.2, 0.4, 0.8], strict=True)), waits
    patient.stop()


def test_a_long_log_is_moved_aside_and_its_end_is_read(tmp_path):
    one = child(tmp_path, "print('fresh')")
    one.log.write_bytes(b"old line\n" * 2_300_000)
    assert one.tail(1) == "old line"
    one.start()
    one.process.wait()
    assert one.tail() == "fresh" and one.log.with_suffix(".log.1").is_file()


def test_stop_ends_orphans_too_and_the_first_child_last(supervisor, tmp_path):
    first = child(tmp_path, SLEEP, "server")
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True)"
    second = child(tmp_path, f"{parent}; {SLEEP}")
    supervisor.start(first)
    supervisor.start(second)
    (orphan,) = wait_for(psutil.Process(second.process.pid).children)
    second.process.kill()
    second.process.wait()
    assert orphan.is_running()  # a flow whose worker died works on
    stranger = subprocess.Popen([sys.executable, "-c", SLEEP])
    supervisor.stop(grace=5)
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()
    assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
    assert first.process.returncode == -signal.SIGTERM


def test_a_child_that_ignores_sigterm_is_killed(supervisor, tmp_path):
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    one = child(tmp_path, deaf)
    supervisor.start(one)
    wait_for(lambda: "deaf" in one.tail())
    supervisor.stop(grace=0.2)
    assert one.process.returncode == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's death signal")
def test_children_end_with_a_killed_supervisor(tmp_path):
    code = (
        "import os, sys, time; from pathlib import Path; from tasks.supervisor import Child, Supervisor\n"
        "s, here = Supervisor(), Path(sys.argv[1])\n"
        f"s.start(Child('x', [sys.executable, '-c', {SLEEP!r}], dict(os.environ), here / 'log', here))\n"
        "print(s.children[0].process.pid, flush=True); time.sleep(600)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
    wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
