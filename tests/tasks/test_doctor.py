"""`de doctor`: each check on machines and workspaces of many kinds, and the whole on strange ones."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tasks.doctor import CHECKS, examine
from tasks.doctor_check import OK, PROBLEM, WARNING
from tasks.doctor_machine import (
    GB,
    Allowance,
    Gpu,
    check_cores,
    check_disk,
    check_gpus,
    check_memory,
    read_allowance,
)
from tasks.doctor_packages import (
    check_command,
    check_optional,
    check_packages,
    check_python,
    check_traps,
    project_table,
)
from tasks.doctor_services import Listener, check_port, database_checks, find_listener
from tasks.doctor_workspace import dvc_checks, git_checks, settings_checks

ROOT = Path(__file__).parents[2]


def levels(checks) -> dict[str, str]:
    return {check.name: check.level for check in checks}


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A git and DVC workspace without a commit."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    folder = tmp_path / "ws"
    folder.mkdir()
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=folder, check=True)
    return folder


def test_every_trap_is_pinned_in_the_project_and_sprung_by_the_version_that_is_known_to_fail():
    assert set(levels(check_traps(lambda name: "1.0"))) == {"fastapi", "sqlalchemy", "starlette"}
    bad = {"fastapi": "0.155.0", "sqlalchemy": "2.1.0", "starlette": "1.6.0"}
    good = {"fastapi": "0.150.0", "sqlalchemy": "2.0.58", "starlette": "1.3.1"}
    assert set(levels(check_traps(bad.get)).values()) == {PROBLEM}
    assert set(levels(check_traps(good.get)).values()) == {OK}
    assert set(levels(check_traps(lambda name: None)).values()) == {PROBLEM}


def test_packages_that_differ_are_warnings_and_missing_ones_problems():
    wanted = ["torch==2.15.0", "numpy==2.4.6", "dvc==3.67.1", "fastapi==0.150.0", "winonly==1; sys_platform == 'win32'"]
    found = {"torch": "2.15.0+cu128", "numpy": "2.5.0", "fastapi": "0.151.0"}
    checks = check_packages(wanted, found.get)
    assert levels(checks) == {"packages": OK, "numpy": WARNING, "dvc": PROBLEM}  # fastapi has a check of its own
    assert "2.5.0" in checks[1].found and "2.4.6" in checks[1].found and "uv sync" in checks[1].cure


def test_python_and_the_optional_packages():
    assert check_python(">=3.11,<3.14", "3.12.1").level == OK
    assert check_python(">=3.11,<3.14", "3.14.0").level == PROBLEM
    extras = {"ray": ["ray==2.60.0"], "detectron2": ["detectron2 @ git+https://example.org/d"]}
    assert levels(check_optional(extras, lambda name: None)) == {"detectron2": OK, "ray": OK}
    assert levels(check_optional(extras, {"ray": "2.61.0", "detectron2": "0.6"}.get))["ray"] == WARNING


def test_the_stages_must_find_the_command_of_this_environment(tmp_path):
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    assert check_command(str(tmp_path / "ours" / "de"), tmp_path / "ours").level == OK
    other = check_command(str(tmp_path / "theirs" / "de"), tmp_path / "ours")
    assert other.level == WARNING and "theirs" in other.found
    assert check_command(None, tmp_path / "ours").level == WARNING


def test_the_pins_are_those_of_the_project():
    assert "fastapi==0.150.0" in project_table()["dependencies"]


def test_a_containers_share_counts_and_not_the_machine():
    assert check_memory(Allowance(), 32 * GB, 20 * GB).level == OK
    assert check_memory(Allowance(memory=3 * GB, memory_used=GB), 32 * GB, 20 * GB).level == WARNING
    assert check_memory(Allowance(memory=2 * GB, memory_used=2 * GB), 32 * GB, 20 * GB).level == PROBLEM
    assert check_memory(Allowance(memory=2**63), 32 * GB, 20 * GB).level == OK  # version 1's way to say no limit


def test_cores_that_are_shared(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert check_cores(Allowance(), 8, 8, 0.5).level == OK and check_cores(Allowance(), 8, 8, None).level == OK
    assert check_cores(Allowance(), 2, 2, 4.0).level == WARNING
    shared = check_cores(Allowance(cpus=1.5), 8, 8, 0.5)
    assert shared.level == WARNING and "OMP_NUM_THREADS=1" in shared.cure and "1.5 of 8" in shared.found
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert check_cores(Allowance(cpus=1.5), 8, 8, 0.5).level == OK


@pytest.mark.parametrize(("free", "level"), [(50 * GB, OK), (10 * GB, WARNING), (GB, PROBLEM)])
def test_disk(tmp_path, free, level):
    assert check_disk(tmp_path, free).level == level
    assert check_disk(tmp_path / "not" / "there").found  # the disk that it would be on


def test_gpus():
    assert [c.level for c in check_gpus([Gpu("H100", 80 * GB, 79 * GB), Gpu("T4", 16 * GB, 2 * GB)], True)] == [
        OK,
        WARNING,
    ]
    broken = check_gpus([Gpu("K80", 12 * GB, 0, "no kernel image is available")], True)[0]
    assert broken.level == PROBLEM and "no kernel image" in broken.found
    assert check_gpus([], True)[0].level == WARNING and "driver" in check_gpus([], True)[0].found
    assert check_gpus([], False)[0].found == "none" and check_gpus([], False, "mps")[0].level == OK


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"cpu.max": "150000 100000\n", "memory.max": "2000\n", "memory.current": "500\n"}, Allowance(1.5, 2000, 500)),
        ({"cpu.max": "max 100000\n", "memory.max": "max\n"}, Allowance()),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, Allowance()),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, Allowance(2.0)),
        ({"memory/memory.limit_in_bytes": "7\n", "memory/memory.usage_in_bytes": "3\n"}, Allowance(None, 7, 3)),
        ({"cpu.max": "what?\n", "memory.max": "\xff"}, Allowance()),
        ({}, Allowance()),
    ],
)
def test_the_limits_of_a_container_are_read_in_both_versions(tmp_path, files, wanted):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="latin-1")
    assert read_allowance(tmp_path) == wanted


def test_a_port_is_free_ours_or_somebody_elses():
    assert check_port(4200, None).level == OK
    ours = check_port(5151, Listener(7, ("python", "-m", "tasks.app_server")))
    assert ours.level == OK and "7" in ours.found
    assert check_port(4200, Listener(7, ("/usr/bin/python3.11", "-m", "prefect.server"))).level == OK
    other = check_port(4200, Listener(7, ("/usr/sbin/nginx",)))
    assert other.level == WARNING and "nginx" in other.found and "--port" in other.cure
    assert check_port(4200, Listener(None)).level == WARNING


def test_who_listens_is_found_out():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        server.listen()
        assert find_listener(port) == Listener(os.getpid(), tuple(psutil.Process().cmdline()))
    assert find_listener(port) is None


def test_the_address_of_a_users_own_database_is_never_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("FIFTYONE_DATABASE_URI", "mongodb://me:hunter2@127.0.0.1:1/?serverSelectionTimeoutMS=100")
    (check,) = database_checks(tmp_path)
    assert check.level == PROBLEM and "hunter2" not in str(check)


def test_the_database_that_comes_with_the_project_is_found_and_runs(tmp_path, monkeypatch):
    monkeypatch.delenv("FIFTYONE_DATABASE_URI", raising=False)
    monkeypatch.setenv("DE_HOME", str(tmp_path / "home"))
    assert levels(database_checks(tmp_path)) == {"mongod": OK, "home": OK}
    assert not (tmp_path / "home").exists()


def test_outside_a_workspace_git_and_dvc_are_warnings(tmp_path):
    assert levels([*git_checks(tmp_path), *dvc_checks(tmp_path), *settings_checks(tmp_path)]) == {
        "git": WARNING,
        "dvc": WARNING,
    }


def test_git_tells_what_is_not_committed_and_who_is_unknown(repository, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("GIT_", "EMAIL"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(repository.parent / "gitconfig"))
    (repository.parent / "gitconfig").write_text("[user]\n\tuseConfigOnly = true\n")
    (repository / "new.txt").touch()
    checks = git_checks(repository)
    assert levels(checks) == {"git": WARNING, "git identity": WARNING} and "new.txt" in checks[0].found
    (repository.parent / "gitconfig").write_text("[user]\n\tname = a\n\temail = a@example.org\n")
    for command in (["git", "add", "."], ["git", "commit", "-qm", "start"]):
        subprocess.run(command, cwd=repository, check=True)
    assert levels(git_checks(repository)) == {"git": OK}


def test_dvc_tells_what_is_out_of_date_and_an_empty_lock(repository):
    assert levels(dvc_checks(repository)) == {"dvc": OK}
    (repository / "dvc.yaml").write_text("stages:\n  one:\n    cmd: de world --out data\n    outs: [data]\n")
    (check,) = dvc_checks(repository)
    assert check.level == WARNING and "one" in check.found and "dvc repro" in check.cure
    (repository / ".dvc" / "tmp").mkdir(exist_ok=True)
    (repository / ".dvc" / "tmp" / "rwlock").write_bytes(b"")
    (check,) = dvc_checks(repository)
    assert check.level == PROBLEM and "empty" in check.found and "delete" in check.cure


@pytest.mark.parametrize(
    ("params", "level", "words"),
    [
        ("ldm: {id: world}", OK, "64 px"),
        ("ldm: {id: world, resolution: ten}", PROBLEM, "resolution"),
        ("ldm: {id: /nowhere}", PROBLEM, "model_index.json"),
        ("ldm: {id: owner/name}", PROBLEM, "ldm.revision"),
        ("ldm: {id: owner/name, revision: abc}", OK, "first use"),
        ("ldm: [", PROBLEM, "yaml"),
    ],
)
def test_settings_are_read_as_the_commands_would(tmp_path, params, level, words):
    (tmp_path / "params.yaml").write_text(params)
    (check,) = settings_checks(tmp_path)
    assert check.level == level and words in check.found


@pytest.mark.parametrize(
    ("stages", "level"),
    [
        ("stages: {one: {cmd: de world --out data}}", OK),
        ("stages: {one: {cmd: make all}}", WARNING),
        ("stages: {one: {}}", PROBLEM),
        ("stages: [", PROBLEM),
        ("", PROBLEM),
    ],
)
def test_stages_are_read_as_a_recording_would(tmp_path, stages, level):
    (tmp_path / "params.yaml").write_text("ldm: {id: world}")
    (tmp_path / "dvc.yaml").write_text(stages)
    assert levels(settings_checks(tmp_path))["dvc.yaml"] == level


def test_a_check_that_fails_is_a_warning_and_hides_no_other(tmp_path):
    checks = {"gone": "tasks.no_such_module:checks", "bad": "tasks.doctor_workspace:no_such", "git": CHECKS["git"]}
    assert levels(examine(tmp_path, checks)) == {"gone": WARNING, "bad": WARNING, "git": WARNING}


STRANGE = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split(","):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
sys.argv[1:] = ["doctor", "--json"]
from flows.cli import main
main()
"""


@pytest.mark.parametrize("missing", ["torch,psutil", "packaging,yaml,numpy", "fiftyone,pymongo,dvc"])
def test_it_answers_where_packages_are_missing_and_the_path_is_empty(tmp_path, missing):
    environment = {"PATH": "", "PYTHONPATH": str(ROOT), "DE_HOME": "/proc/nowhere"}
    command = [sys.executable, "-c", STRANGE, missing]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    checks = json.loads(done.stdout)
    assert "Traceback" not in done.stderr
    assert done.returncode == any(check["level"] == PROBLEM for check in checks)
    assert {"name", "level", "found", "cure"} == set(checks[0]) and len(checks) >= len(CHECKS)
