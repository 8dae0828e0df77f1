"""`de up`: Prefect's server and worker, MongoDB and the FiftyOne App under one supervisor, on 127.0.0.1."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ConfigError
from tasks.database import stop_unused
from tasks.deployments import register_deployments
from tasks.flow_board import BoardWatch, FlowBoard
from tasks.flow_runs import tell_port
from tasks.pool import POOL, bury_dead_runs, prepare_pool
from tasks.ports import check_free
from tasks.prefect_database import database_environment
from tasks.server import HOST, api_url, prefect_command, server_environment, wait_until_healthy
from tasks.services import Review, Service, of_child
from tasks.shown_dataset import check_dataset
from tasks.stop_signal import StopSignal
from tasks.supervisor import Child, Supervisor


@dataclass(frozen=True)
class UpRequest:
    """What is to run.

    Attributes:
        workspace: folder that flows run in; its prefect.yaml names the deployments.
        port: of Prefect's server; app_port: of the App; both on 127.0.0.1.
        limit: flows that run at once.
        prefect_file: another file of deployments.
        database: URL of a PostgreSQL for Prefect's history, without a password.
        with_app: run MongoDB and the App.
        shown: generated dataset that the App shows; where None, the one of the workspace that was finished last, as
            soon as there is one.
    """

    workspace: Path
    port: int = 4200
    app_port: int = 5151
    limit: int = 1
    prefect_file: Path | None = None
    database: str | None = None
    with_app: bool = True
    shown: Path | None = None


@dataclass(frozen=True)
class Snapshot:
    """How things stand: `history` names Prefect's database."""

    workspace: Path
    services: tuple[Service, ...]
    board: FlowBoard
    history: str
    logs: Path


def up(request: UpRequest, show: Callable[[Snapshot], None], say: Callable[[str], None] = print) -> None:
    """Run everything until SIGINT or SIGTERM; all of it, and any running flow, is stopped before this returns.

    It sets this process' environment: Prefect must not have been imported before.

    Args:
        show: called every second once all is started.
        say: receives the few lines meant for the user.

    Raises:
        ConfigError: a port is taken, there is no prefect.yaml, no dataset to show, or no database under that URL.
        RunFailed: the database or the server does not start, a deployment is refused, or server or worker keeps dying.
    """
    workspace = request.workspace.absolute()
    prefect_file = request.prefect_file or workspace / "prefect.yaml"
    if not prefect_file.is_file():
        raise ConfigError(f"No {prefect_file}: `de up` registers the deployments that it names. Run it in a workspace.")
    check_free(request.port, "--port")
    if request.with_app:
        check_free(request.app_port, "--app-port, or --no-app")
    shown = check_dataset(request.shown) if request.shown else None
    database, history = database_environment(request.database)
    environment = server_environment(workspace / ".prefect", request.port)
    os.environ.update(environment)  # before Prefect is imported here
    logs = workspace / ".prefect" / "logs"
    supervisor, watch = Supervisor(), None
    review = Review(supervisor, workspace, request.app_port, shown, environment) if request.with_app else None

    def child(name: str, *arguments: str, **settings: str) -> Child:
        command = prefect_command(*arguments)
        return Child(name, command, environment | settings, logs / f"{name}.log", workspace)

    with StopSignal() as stopping:
        try:
            say("Starting Prefect's server (about 15 s) ...")
            supervisor.start(child("server", "server", "start", **database))
            if review:
                review.start_database()
            wait_until_healthy(request.port, supervisor)
            tell_port(workspace, request.port)
            asyncio.run(prepare_pool(request.limit))
            if crashed := asyncio.run(bury_dead_runs()):
                say(f"{crashed} earlier runs died without a word: marked as crashed. What they finished is kept.")
            for line in asyncio.run(register_deployments(workspace, prefect_file, environment)):
                say(f"Schedule of {line}.")
            options = ("--pool", POOL, "--type", "process", "--name", "de-up", "--limit", str(request.limit))
            supervisor.start(child("worker", "worker", "start", *options))
            watch = BoardWatch(api_url(request.port))
            say(_welcome(request.port))
            addresses = {"server": f"http://{HOST}:{request.port}", "worker": f"pool {POOL}, {request.limit} at once"}
            while not stopping.received:
                for name in supervisor.check():
                    say(f"The {name} had died and was started again. Logs: {logs}")
                services = [of_child(c, addresses[c.name]) for c in supervisor.children if c.name in addresses]
                if review:
                    services += review.look()
                show(Snapshot(workspace, tuple(services), watch.board, history, logs))
                stopping.wait(1.0)
        except KeyboardInterrupt:
            pass
        finally:
            say("Stopping ...")
            tell_port(workspace, None)
            if watch:
                watch.stop()
            supervisor.stop()
            if review:
                stop_unused()


def _welcome(port: int) -> str:
    prefix = "" if port == 4200 else f"PREFECT_API_URL={api_url(port)} "
    return (
        f"Prefect's UI: http://{HOST}:{port}\n"
        "From another terminal, in this folder:\n"
        f"  {prefix}prefect deployment run 'generate-coco-de/default' -p images=8\n"
        "Ctrl-C stops everything."
    )
