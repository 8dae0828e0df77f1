"""Prefect's server and worker on this machine, for `de up`; and the temporary server of `de demo`.

Everything listens on 127.0.0.1 only. The server answers no foreign origin, and state-changing requests need
a token that other origins cannot read. History lies in `.prefect/` of the workspace.
"""

from __future__ import annotations

import asyncio
import atexit
import http.client
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from engine.errors import ConfigError, RunFailed
from tasks.supervisor import Child, Supervisor
from tasks.zombies import HEARTBEAT_SECONDS, watch_for_zombies

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
POOL = "gpu"  # one slot: two flows never share the GPU


def quiet_environment(home: Path) -> dict[str, str]:
    """What every Prefect process of ours is started with: a private home, no telemetry, few log lines."""
    home = home.absolute()
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # The command itself says how a flow ended; Prefect would print the traceback of every mistake.
        "PREFECT_LOGGING_LEVEL": os.environ.get("PREFECT_LOGGING_LEVEL", "CRITICAL"),
        "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
        "PREFECT_CLI_PROMPT": "false",
    }


def use_temporary_server(home: Path) -> None:
    """Make flows of this process run against a server of their own that ends with it; its database lies in `home`.

    Must be called before Prefect is imported. Where the user has set PREFECT_API_URL, that server is used
    and nothing is changed.

    Raises:
        RunFailed: the server does not start.
    """
    if os.environ.get("PREFECT_API_URL"):
        return
    port = _free_port()
    own = {"PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false", "PREFECT_SERVER_UI_ENABLED": "false"}
    os.environ.update(server_environment(home, port) | quiet_environment(home) | own)
    supervisor = Supervisor()
    # Registered before Prefect's own handlers, so called after them: they still have something to tell the server.
    atexit.register(supervisor.stop)
    supervisor.start(Child("server", _prefect("server", "start"), os.environ, home / "logs" / "server.log", home))
    _wait_until_healthy(port, supervisor)


def private_folder(folder: Path) -> Path:
    """Create `folder`, readable by its owner only and ignored by git."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    (folder / ".gitignore").write_text("*\n")
    return folder


def server_environment(home: Path, port: int) -> dict[str, str]:
    """The environment of a server in the private folder `home`, its worker and its clients."""
    private_folder(home)
    own_origins = f"http://{HOST}:{port},http://localhost:{port}"
    return {
        **os.environ,
        **quiet_environment(home),
        "PREFECT_API_URL": api_url(port),
        "PREFECT_UI_API_URL": f"http://{HOST}:{port}/api",
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": own_origins,
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
        "PREFECT_LOGGING_LEVEL": os.environ.get("PREFECT_LOGGING_LEVEL", "INFO"),
    }


def api_url(port: int) -> str:
    return f"http://{HOST}:{port}/api"


def up(workspace: Path, port: int = 4200, prefect_file: Path | None = None, say: Callable[[str], None] = print) -> None:
    """Run server and worker until SIGINT or SIGTERM; both, and any running flow, are stopped before this returns.

    It sets this process' environment: Prefect must not have been imported before.

    Args:
        workspace: folder that flows run in; its prefect.yaml names the deployments.
        port: of the server, on 127.0.0.1.
        prefect_file: another file of deployments.
        say: receives the few lines meant for the user.

    Raises:
        ConfigError: the port is taken, or there is no prefect.yaml.
        RunFailed: the server does not start, a deployment is refused, or a child keeps dying.
    """
    prefect_file = prefect_file or workspace / "prefect.yaml"
    if not prefect_file.is_file():
        raise ConfigError(f"No {prefect_file}: `de up` registers the deployments that it names. Run it in a workspace.")
    _check_port_free(port)
    environment = server_environment(workspace / ".prefect", port)
    os.environ.update(environment)  # before Prefect is imported here
    logs = workspace / ".prefect" / "logs"
    supervisor, stopping = Supervisor(), _StopSignal()
    with stopping:
        try:
            say("Starting Prefect's server (about 15 s) ...")
            server = _prefect("server", "start")
            supervisor.start(Child("server", server, environment, logs / "server.log", workspace))
            _wait_until_healthy(port, supervisor)
            crashed = asyncio.run(_prepare_pool())
            if crashed:
                say(f"{crashed} earlier runs died without a word: marked as crashed. What they finished is kept.")
            _deploy(workspace, prefect_file, environment)
            worker = _prefect("worker", "start", "--pool", POOL, "--type", "process", "--name", "de-up", "--limit", "1")
            supervisor.start(Child("worker", worker, environment, logs / "worker.log", workspace))
            say(_welcome(port))
            while not stopping.wait(1.0):
                for name in supervisor.check():
                    say(f"The {name} had died and was started again. Logs: {logs}")
        except KeyboardInterrupt:
            pass
        finally:
            say("Stopping ...")
            supervisor.stop()


class _StopSignal:
    """While entered, SIGINT and SIGTERM ask the loop to end, and interrupt what waits before it."""

    def __init__(self) -> None:
        self.received = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> _StopSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        first, self.received = not self.received, True
        if first:  # a second Ctrl-C must not break the orderly stop
            raise KeyboardInterrupt

    def wait(self, seconds: float) -> bool:
        time.sleep(seconds)
        return self.received


def _prefect(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "prefect", *arguments]


def _check_port_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigError(
                f"Port {port} of {HOST} cannot be used ({error.strerror}). Is `de up` running? Else give --port."
            ) from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def healthy(port: int) -> bool:
    """Does the server on this port answer?"""
    return answers(api_url(port))


def answers(url: str, seconds: float = 5.0) -> bool:
    """Does a Prefect server answer at this API address?"""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=seconds) as answer:
            return answer.status == 200
    except (OSError, ValueError, http.client.HTTPException):  # URLError is an OSError
        return False


def _wait_until_healthy(port: int, supervisor: Supervisor, limit: float = 300.0) -> None:
    started = time.monotonic()
    server = supervisor.children[0]
    while not healthy(port):
        if not server.alive or time.monotonic() - started > limit:
            raise RunFailed(f"Prefect's server did not start. Its log is {server.log}; it ends with:\n{server.tail()}")
        time.sleep(0.25)


async def _prepare_pool() -> int:
    """Create the work pool with its one slot, free the slot of runs that died with an earlier `de up`, and have the
    server watch for runs that die from now on.

    Returns the number of runs that were marked as crashed. Nothing of the pool can be running: this server's only
    worker is not started yet.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    alive = [StateType.RUNNING.value, StateType.PENDING.value, StateType.CANCELLING.value]
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=POOL, type="process", concurrency_limit=1), overwrite=True)
        stale = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": alive}}}),
            work_pool_filter=WorkPoolFilter.model_validate({"name": {"any_": [POOL]}}),
        )
        for run in stale:
            await client.set_flow_run_state(run.id, Crashed(message="Its process died with the server."), force=True)
        await watch_for_zombies(client)
    return len(stale)


def _deploy(workspace: Path, prefect_file: Path, environment: dict[str, str]) -> None:
    command = _prefect("--no-prompt", "deploy", "--all", "--prefect-file", str(prefect_file.absolute()))
    _run(command, environment, f"register the deployments of {prefect_file}", workspace)


def _run(command: list[str], environment: dict[str, str], purpose: str, folder: Path | None = None) -> None:
    done = subprocess.run(
        command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600
    )
    if done.returncode != 0:
        raise RunFailed(f"Could not {purpose}:\n{(done.stdout + done.stderr).strip()[-2000:]}")


def _welcome(port: int) -> str:
    prefix = "" if port == 4200 else f"PREFECT_API_URL={api_url(port)} "
    return (
        f"Prefect's UI: http://{HOST}:{port}\n"
        "From another terminal, in this folder:\n"
        f"  {prefix}prefect deployment run 'generate-coco-de/default' -p images=8\n"
        "Ctrl-C stops everything."
    )
