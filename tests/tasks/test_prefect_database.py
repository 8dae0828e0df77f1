"""Prefect's history in a real PostgreSQL; its password is seen nowhere."""

from __future__ import annotations

import os
import time
from pathlib import Path
from urllib.parse import quote

import pytest
from postgres_server import PASSWORD, postgres
from sqlalchemy.engine import make_url
from up_workspace import begin, lay_out, start, wait_for, words

from engine.errors import ConfigError, RunFailed
from tasks.ports import free_port
from tasks.prefect_database import SETTING, database_environment, without_database

FLOWS = 8
QUOTED = quote(PASSWORD, safe="")
BUSY = """
import time
from pathlib import Path
from prefect import flow, task

@task
def step(n: int) -> int:
    return n

@flow
def busy(number: int):
    Path(f"{number}-started").touch()
    deadline = time.monotonic() + 600
    while len(list(Path().glob("*-started"))) < FLOWS and time.monotonic() < deadline:
        time.sleep(0.1)  # until all run
    Path(f"{number}-sum").write_text(str(sum(step(n) for n in range(20))))
"""
DEPLOYMENT = """
deployments:
  - name: default
    entrypoint: busy.py:busy
    work_pool: {name: gpu}
"""


@pytest.fixture
def no_settings(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("PREFECT_SERVER_DATABASE", "PREFECT_API_DATABASE"))]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def server():
    with postgres() as running:
        yield running


def test_without_a_url_it_is_sqlite_and_nothing_is_asked(no_settings):
    assert database_environment(None) == ({}, "SQLite")


@pytest.mark.parametrize("url", ["mysql://u:geheim@host/db", "geheim", "postgresql://u:geheim@host:port/db"])
def test_another_url_is_refused_without_repeating_it(url, no_settings, monkeypatch):
    monkeypatch.setenv(SETTING, url)
    with pytest.raises(ConfigError, match="postgresql") as refusal:
        database_environment(None)
    assert SETTING in str(refusal.value) and "geheim" not in str(refusal.value)


@pytest.mark.parametrize("url", ["postgresql://de:geheim@host/db", "postgresql://de@host/db?password=geheim"])
def test_a_password_on_the_command_line_is_refused(url, no_settings):
    with pytest.raises(ConfigError, match="list of processes") as refusal:
        database_environment(url)
    assert "geheim" not in str(refusal.value)


def test_only_the_server_has_the_url(no_settings, monkeypatch):
    monkeypatch.setenv(SETTING, "postgresql+asyncpg://de:geheim@host/db")
    assert SETTING not in without_database(os.environ) and "PATH" in without_database(os.environ)


def test_a_real_one_is_entered_and_what_is_wrong_is_told_without_the_password(server, no_settings, monkeypatch):
    monkeypatch.setenv(SETTING, server.url(QUOTED, "postgresql"))
    settings, name = database_environment(None)
    given = make_url(settings[SETTING])
    assert (given.drivername, given.password) == ("postgresql+asyncpg", PASSWORD)
    assert name == f"PostgreSQL at 127.0.0.1:{server.port}/postgres"
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert database_environment(server.url())[1] == name
    monkeypatch.setenv("PGPASSWORD", "")
    for url, reason in {
        server.url("geheim"): "password authentication failed",
        server.url(QUOTED) + "x": "does not exist",
        server.url(QUOTED).replace(str(server.port), str(free_port())): "Connect",
    }.items():
        monkeypatch.setenv(SETTING, url)
        with pytest.raises(RunFailed, match=reason) as refusal:
            database_environment(None)
        assert not any(secret in str(refusal.value) for secret in ("geheim", PASSWORD, QUOTED))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["postgresql", "sqlite"])
def test_eight_flows_at_once_end_right(kind, server, tmp_path):
    """With `-s` it prints how they ended and how long they took."""
    lay_out(tmp_path, DEPLOYMENT)
    (tmp_path / "busy.py").write_text(BUSY.replace("FLOWS", str(FLOWS)))
    settings = {SETTING: server.url(QUOTED)} if kind == "postgresql" else {}
    running = start(tmp_path, "--no-app", "--limit", str(FLOWS), **settings)
    try:
        (deployment,) = running.post("/deployments/filter", {}).json()
        for number in range(FLOWS):
            asked = running.post(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": {"number": number}})
            assert asked.status_code == 201
        began = time.monotonic()
        ended = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

        def states() -> list[str]:
            return [run["state_type"] for run in running.flow_runs("busy/default")]

        wait_for(lambda: all(state in ended for state in states()), 900)
        print(f"{kind}: {sorted(states())} after {time.monotonic() - began:.0f} s")
        assert states() == ["COMPLETED"] * FLOWS
        assert [(tmp_path / f"{n}-sum").read_text() for n in range(FLOWS)] == ["190"] * FLOWS
        assert (tmp_path / ".prefect" / "prefect.db").exists() == (kind == "sqlite")
        command_lines = " ".join(word for process in running.family() for word in words(process))
    finally:
        running.stop()
    written = b"".join(path.read_bytes() for path in (tmp_path / ".prefect").rglob("*") if path.is_file()).decode(
        "latin1"
    )
    for seen in (command_lines, "".join(running.said), written):
        assert seen and PASSWORD not in seen and QUOTED not in seen


@pytest.mark.slow
def test_a_wrong_password_ends_the_command_with_one_message(server, tmp_path):
    lay_out(tmp_path)
    made = begin(tmp_path, **{SETTING: server.url("geheim")})
    said = made.process.communicate(timeout=120)[0]
    assert made.process.returncode == 1 and "geheim" not in said and not (Path(tmp_path) / ".prefect").exists()
