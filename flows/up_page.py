"""The status page of `de up`: one page that is kept up to date in a terminal, elsewhere a line for each change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from io import StringIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flows.exits import printable
from tasks.flow_board import BoardRun
from tasks.services import DEAD, RUNNING, Service
from tasks.up import Snapshot

_COLOURS = {RUNNING: "green", DEAD: "red"}


@contextmanager
def open_page(console: Console) -> Iterator[tuple[Callable[[Snapshot], None], Callable[[str], None]]]:
    """(show, say) for `tasks.up.up`. A page where the console is a terminal that can move its cursor, else lines."""

    def say(text: str) -> None:
        console.print(Text(printable(text)), soft_wrap=True)

    if not console.is_terminal or console.is_dumb_terminal:
        yield Changes(say).show, say
        return
    # In place, by `show` alone, and only when something on it has changed: nothing flickers.
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        drawn = ""

        def show(snapshot: Snapshot) -> None:
            nonlocal drawn
            now = page(snapshot)
            if (text := as_text(now, console.width)) != drawn:
                drawn = text
                live.update(now, refresh=True)

        yield show, say


def page(snapshot: Snapshot) -> Group:
    """Services, the ends of their logs, flows, and where to look further."""
    services, logs = _table("service", "state", "restarts", "up", "address"), _table("", "last line of its log")
    for service in snapshot.services:
        state = Text(service.state, style=_COLOURS.get(service.state, "yellow"))
        up = readable(service.seconds) if service.state == RUNNING and service.seconds else ""
        services.add_row(service.name, state, str(service.restarts or ""), up, Text(service.address))
        if service.last_line:
            logs.add_row(service.name, Text(_clean(service.last_line), style="dim"))
    flows, board = _table("flow", "state", "when", "for", ""), snapshot.board
    for run in board.running:
        flows.add_row(*_row(run, run.state.lower(), "green"))
    for run in board.next:
        flows.add_row(*_row(run, "next"))
    for run in board.recent:
        flows.add_row(*_row(run, run.state.lower(), "" if run.state == "Completed" else "red"))
    if board.problem:
        flows.add_row(Text(f"Flows: {board.problem}", style="red"))
    about = Text(f"Workspace {snapshot.workspace}\nHistory in {snapshot.history}. Logs in {snapshot.logs}", style="dim")
    return Group("", services, "", logs, "", flows if flows.row_count else Text("No flow yet.", style="dim"), "", about)


def as_text(page: Group, width: int) -> str:
    """A page as it stands in a terminal of that width, without its colours."""
    console = Console(file=StringIO(), width=width)
    console.print(page)
    return console.file.getvalue()


def _row(run: BoardRun, state: str, style: str = "") -> tuple:
    lasted = readable(run.seconds) if run.seconds else ""
    return Text(_name(run)), Text(state, style=style), _time(run.when), lasted, Text(_clean(run.message))


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    return table


class Changes:
    """The same for a pipe or a journal: a line when a service changes its state, a flow starts or ends."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._services: dict[str, tuple] = {}
        self._flows: set[str] | None = None

    def show(self, snapshot: Snapshot) -> None:
        for service in snapshot.services:
            now = (service.state, service.address, service.restarts)
            if self._services.get(service.name) != now:
                self._services[service.name] = now
                self._say(service_line(service))
        board = snapshot.board
        lines = [f"flow {_name(run)}: {run.state.lower()}" for run in board.running]
        lines += [f"flow {_name(run)}: next at {_time(run.when)}" for run in board.next]
        lines += [
            f"flow {_name(run)}: {run.state.lower()} at {_time(run.when)}, after {readable(run.seconds)}. {run.message}"
            for run in reversed(board.recent)
        ]
        lines += [f"flows: {board.problem}"] if board.problem else []
        for line in lines:
            if line not in (self._flows or ()):
                self._say(_clean(line).strip())
        self._flows = set(lines)


def service_line(service: Service) -> str:
    """One service in words."""
    parts = [f"{service.name}: {service.state}", service.address]
    parts += [f"(restarts: {service.restarts})" if service.restarts else ""]
    parts += [f"last words: {_clean(service.last_line)}" if service.state == DEAD and service.last_line else ""]
    return " ".join(part for part in parts if part)


def readable(seconds: float) -> str:
    """45 s, 12 min, 3 h 20 min, 2 d 4 h: so coarse that the page seldom changes."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if not minutes:
        return f"{int(seconds)} s"
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if not days else f"{days} d {hours % 24} h"


def _name(run: BoardRun) -> str:
    return _clean(f"{run.flow}/{run.deployment}" if run.deployment else run.flow)


def _time(when: datetime | None) -> str:
    return when.astimezone().strftime("%Y-%m-%d %H:%M:%S") if when else "-"


def _clean(text: str) -> str:
    """Words of a log or a run, on one line, without what a terminal would obey."""
    return printable(" ".join(text.split()))
