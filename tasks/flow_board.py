"""What flows do, for the status page of `de up`: running, next by schedule, lately ended."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from datetime import datetime

RECENT, NEXT = 5, 3
_EVERY_SECONDS = 5.0


@dataclass(frozen=True)
class BoardRun:
    """flow, deployment: names, the latter None for a run without one; state: Prefect's name of it; when: it started,
    is to start, or ended; seconds: that it ran; message: of a run that did not go well."""

    flow: str
    deployment: str | None
    state: str
    when: datetime | None
    seconds: float
    message: str = ""


@dataclass(frozen=True)
class FlowBoard:
    """runs: running or about to; next: the first of each deployment; recent: ended, the last one first; problem: why
    the server could not be asked."""

    running: tuple[BoardRun, ...] = ()
    next: tuple[BoardRun, ...] = ()
    recent: tuple[BoardRun, ...] = ()
    problem: str = ""


class BoardWatch:
    """Asks the server again and again in a thread of its own, so that a slow server keeps nobody waiting."""

    def __init__(self, url: str) -> None:
        self._url, self._board, self._ended = url, FlowBoard(), threading.Event()
        threading.Thread(target=self._watch, name="flow board", daemon=True).start()

    @property
    def board(self) -> FlowBoard:
        """What the server said last."""
        return self._board

    def stop(self) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.is_set():
            try:
                self._board = read_board(self._url)
            except Exception as error:  # whatever Prefect's client raises: its words may hold an address
                self._board = replace(self._board, problem=f"the server could not be asked ({type(error).__name__})")
            self._ended.wait(_EVERY_SECONDS)


def read_board(url: str) -> FlowBoard:
    """Ask the server at an API address."""
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.sorting import FlowRunSort
    from prefect.settings import PREFECT_API_AUTH_STRING

    def runs(states: str, sort: FlowRunSort, limit: int):
        wanted = FlowRunFilter.model_validate({"state": {"type": {"any_": states.split()}}})
        return client.read_flow_runs(flow_run_filter=wanted, sort=sort, limit=limit)

    auth = PREFECT_API_AUTH_STRING.value()
    with SyncPrefectClient(api=url, auth_string=auth, httpx_settings={"timeout": 10}) as client:
        running = runs("RUNNING PENDING CANCELLING PAUSED", FlowRunSort.START_TIME_ASC, 20)
        waiting = runs("SCHEDULED", FlowRunSort.NEXT_SCHEDULED_START_TIME_ASC, 200)
        ended = runs("COMPLETED FAILED CRASHED CANCELLED", FlowRunSort.END_TIME_DESC, RECENT)
        flows = {flow.id: flow.name for flow in client.read_flows()}
        deployments = {deployment.id: deployment.name for deployment in client.read_deployments()}

    def entry(run, when: datetime | None) -> BoardRun:
        bad = run.state_type is not None and run.state_type.value in ("FAILED", "CRASHED")
        return BoardRun(
            flow=flows.get(run.flow_id, "?"),
            deployment=deployments.get(run.deployment_id),
            state=run.state_name or "?",
            when=when,
            seconds=run.total_run_time.total_seconds() if run.total_run_time else 0.0,
            message=(run.state.message or "") if bad and run.state else "",
        )

    first = {}  # runs in order of time: the first of each deployment; a run that was asked for is one of its own
    for run in waiting:
        first.setdefault(run.deployment_id if run.auto_scheduled else run.id, run)
    return FlowBoard(
        running=tuple(entry(run, run.start_time) for run in running),
        next=tuple(entry(run, run.next_scheduled_start_time) for run in first.values())[:NEXT],
        recent=tuple(entry(run, run.end_time) for run in ended),
    )
