"""The status page of `de up`: one page that is kept up to date in a terminal, elsewhere a line for each change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

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
    # Drawn only by `show`, once a second, in place: no thread of its own, and what was there before stays above.
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        yield (lambda snapshot: live.update(page(snapshot), refresh=True)), say


def page(snapshot: Snapshot) -> Group:
    """Services, flows, and where to look further."""
    services = _table("service", "state", "address", "restarts", "up", "last line of its log")
    for service in snapshot.services:
        state = Text(service.state, style=_COLOURS.get(service.state, "yellow"))
        up = readable(service.seconds) if service.state == RUNNING else ""
        restarts = str(service.restarts or "")
        services.add_row(service.name, state, service.address, restarts, up, _clean(service.last_line))
    flows = _table("flow", "state", "when", "for", "")
    board = snapshot.board
    for run in board.running:
        flows.add_row(_name(run), Text(run.state.lower(), style="green"), _time(run.when), readable(run.seconds), "")
    for run in board.next:
        flows.add_row(_name(run), "next", _time(run.when), "", "")
    for run in board.recent:
        style = "" if run.state == "Completed" else "red"
        state = Text(run.state.lower(), style=style)
        flows.add_row(_name(run), state, _time(run.when), readable(run.seconds), _clean(run.message))
    about = Text(f"Workspace {snapshot.workspace}. History in {snapshot.history}. Logs in {snapshot.logs}", style="dim")
    return Group("", services, "", flows if flows.row_count else Text("No flow has run yet.", style="dim"), "", about)


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names[:-1]:
        table.add_column(name, overflow="fold" if name in ("address", "flow") else "ellipsis")
    table.add_column(names[-1], overflow="ellipsis", no_wrap=True, ratio=1)
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
