"""The status page of `de up`, in a terminal and in a pipe."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from flows.up_page import as_text, open_page, page, readable
from tasks.flow_board import BoardRun, FlowBoard
from tasks.services import DEAD, RUNNING, Service
from tasks.up import Snapshot

AT = datetime(2026, 11, 28, 3, 0, tzinfo=UTC)
SERVER = Service("server", RUNNING, "http://127.0.0.1:4200", seconds=7200, last_line="Check out the dashboard")
WORKER = Service("worker", DEAD, "pool gpu", restarts=3, last_line="\x1b]0;owned\x07 out of \x1b[31mmemory")
BOARD = FlowBoard(
    running=(BoardRun("generate-coco-de", "default", "Running", AT, 90.0),),
    next=(BoardRun("scale-up", "nightly", "Scheduled", AT, 0.0),),
    recent=(BoardRun("compare", "default", "Failed", AT, 5.0, "no test.json\nin data/[/bold] real"),),
)
SNAPSHOT = Snapshot(Path("/ws"), (SERVER, WORKER), BOARD, "SQLite", Path("/ws/.prefect/logs"))


@pytest.fixture
def terminal():
    return Console(file=StringIO(), force_terminal=True, width=100, height=40)


@pytest.fixture
def pipe():
    return Console(file=StringIO(), width=60)


def test_the_page_has_every_service_and_flow():
    lines = [" ".join(line.split()) for line in as_text(page(SNAPSHOT), 100).splitlines()]
    assert "server running 2 h 0 min http://127.0.0.1:4200" in lines
    assert "worker died 3 pool gpu" in lines
    assert any(line.startswith("generate-coco-de/default running 2026-11-28") for line in lines)
    assert any(line.startswith("scale-up/nightly next 2026-11-28") for line in lines)
    assert any(line.endswith("5 s no test.json in data/[/bold] real") for line in lines)
    assert "History in SQLite. Logs in /ws/.prefect/logs" in lines


@pytest.mark.parametrize("width", [20, 80])
def test_it_fits_any_width_and_nothing_of_a_log_reaches_the_terminal(width):
    text = as_text(page(SNAPSHOT), width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "\x1b" not in text and "\x07" not in text


def test_a_terminal_is_drawn_on_only_when_something_changed(terminal):
    with open_page(terminal) as (show, say):
        show(SNAPSHOT)
        once = terminal.file.tell()
        show(replace(SNAPSHOT, services=(replace(SERVER, seconds=7201), WORKER)))
        assert terminal.file.tell() == once
        show(replace(SNAPSHOT, services=(SERVER, replace(WORKER, state=RUNNING))))
        assert terminal.file.tell() > once
        say("The worker had died")
    assert "\x1b[?1049h" not in terminal.file.getvalue()  # what was in the terminal before stays


def test_a_pipe_gets_a_line_for_each_change_and_nothing_else(pipe):
    with open_page(pipe) as (show, say):
        show(SNAPSHOT)
        first = pipe.file.getvalue().splitlines()
        show(replace(SNAPSHOT, services=(replace(SERVER, seconds=9000, last_line="GET /"), WORKER)))
        assert pipe.file.getvalue().splitlines() == first
        ended = BoardRun("generate-coco-de", "default", "Completed", AT, 95.0)
        back = replace(WORKER, state=RUNNING)
        after = replace(BOARD, running=(), recent=(ended, *BOARD.recent))
        show(replace(SNAPSHOT, services=(SERVER, back), board=after))
    added = pipe.file.getvalue().splitlines()[len(first) :]
    assert "server: running http://127.0.0.1:4200" in first
    assert any(line.startswith("worker: died pool gpu (restarts: 3) last words:") for line in first)
    assert any(line.startswith("flow compare/default: failed at ") for line in first)
    assert added[0] == "worker: running pool gpu (restarts: 3)"
    assert added[1].startswith("flow generate-coco-de/default: completed at ") and len(added) == 2
    assert "\x1b" not in pipe.file.getvalue()


def test_a_server_that_cannot_be_asked_is_told(pipe):
    snapshot = replace(SNAPSHOT, board=FlowBoard(problem="the server could not be asked (HTTPStatusError)"))
    assert "Flows: the server could not be asked" in as_text(page(snapshot), 100)
    with open_page(pipe) as (show, say):
        show(snapshot)
        show(snapshot)
    assert pipe.file.getvalue().count("flows: the server could not be asked (HTTPStatusError)") == 1


def test_times_are_coarse():
    seconds = [45, 60, 3599, 3660, 90000]
    assert [readable(s) for s in seconds] == ["45 s", "1 min", "59 min", "1 h 1 min", "1 d 1 h"]
