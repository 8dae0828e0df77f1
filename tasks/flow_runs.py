"""Which flows run now, asked of a Prefect server that answers; nothing is started."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tasks.server import answers, api_url

PORT = 4200  # of `de up`
_SECONDS = 2.0
_PORT_FILE = Path(".prefect", "port")  # in a workspace, while `de up` runs there
_LIVE = ("RUNNING", "PENDING", "CANCELLING", "PAUSED")


@dataclass(frozen=True)
class FlowRun:
    """flow: its name; name: the run's own; state: in capitals; started: ISO time, None for one that waits."""

    flow: str
    name: str
    state: str
    started: str | None


@dataclass(frozen=True)
class FlowRuns:
    """What a server said: its host and port, None where none answers; why it could not be asked, if so."""

    server: str | None
    runs: tuple[FlowRun, ...] = ()
    problem: str | None = None


def tell_port(workspace: Path, port: int | None) -> None:
    """Write down where the server of `de up` listens, for other commands in the workspace; None: nowhere any more."""
    path = workspace / _PORT_FILE
    if port is None:
        path.unlink(missing_ok=True)
    else:
        path.write_text(str(port))


def live_flow_runs(workspace: Path) -> FlowRuns:
    """The flow runs that are not finished, of the server at PREFECT_API_URL, else of the one of `de up` there.

    The address itself is never given back: it may hold a password.
    """
    url = os.environ.get("PREFECT_API_URL") or api_url(_told_port(workspace) or PORT)
    if not answers(url, _SECONDS):
        return FlowRuns(None)
    parts = urlsplit(url)
    server = f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
    try:
        return FlowRuns(server, _ask(url))
    except Exception as error:  # whatever Prefect's client raises: the rest of the overview does not depend on it
        return FlowRuns(server, problem=f"it could not be asked ({type(error).__name__})")


def _told_port(workspace: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int((workspace / _PORT_FILE).read_text())
    return None


def _ask(url: str) -> tuple[FlowRun, ...]:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
    from prefect.settings import PREFECT_API_AUTH_STRING

    live = FlowRunFilter.model_validate({"state": {"type": {"any_": list(_LIVE)}}})
    auth = PREFECT_API_AUTH_STRING.value()
    with SyncPrefectClient(api=url, auth_string=auth, httpx_settings={"timeout": 10}) as client:
        runs = client.read_flow_runs(flow_run_filter=live)
        ids = [str(i) for i in {run.flow_id for run in runs}]
        flows = client.read_flows(flow_filter=FlowFilter.model_validate({"id": {"any_": ids}})) if ids else []
    names = {flow.id: flow.name for flow in flows}
    found = [
        FlowRun(
            names.get(run.flow_id, "?"),
            run.name,
            run.state_type.value if run.state_type else "?",
            run.start_time.isoformat(timespec="seconds") if run.start_time else None,
        )
        for run in runs
    ]
    return tuple(sorted(found, key=lambda run: (run.started or "", run.name)))
