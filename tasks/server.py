"""Prefect's server on this machine, for `de up`; and the temporary server of `de demo`.

Everything listens on 127.0.0.1 only. The server answers no foreign origin, and state-changing requests need
a token that other origins cannot read. History lies in `.prefect/` of the workspace.
"""

from __future__ import annotations

import atexit
import http.client
import os
import sys
import time
import urllib.request
from pathlib import Path

from engine.errors import RunFailed
from tasks.ports import HOST, free_port
from tasks.prefect_database import without_database
from tasks.supervisor import Child, Supervisor
from tasks.zombies import HEARTBEAT_SECONDS


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
    port = free_port()
    own = {"PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false", "PREFECT_SERVER_UI_ENABLED": "false"}
    environment = server_environment(home, port) | quiet_environment(home) | own
    os.environ.update(environment)
    supervisor = Supervisor()
    # Registered before Prefect's own handlers, so called after them: they still have something to tell the server.
    atexit.register(supervisor.stop)
    log = home / "logs" / "server.log"
    supervisor.start(Child("server", prefect_command("server", "start"), environment, log, home))
    wait_until_healthy(port, supervisor)


def private_folder(folder: Path) -> Path:
    """Create `folder`, readable by its owner only and ignored by git."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    (folder / ".gitignore").write_text("*\n")
    return folder


def server_environment(home: Path, port: int) -> dict[str, str]:
    """The environment of a server in the private folder `home`, its worker and its clients.

    No other database than the one in `home`: `tasks.prefect_database` has what the server of `de up` is given besides.
    """
    private_folder(home)
    own_origins = f"http://{HOST}:{port},http://localhost:{port}"
    auth = os.environ.get("PREFECT_SERVER_API_AUTH_STRING")
    return {
        **({"PREFECT_API_AUTH_STRING": auth} if auth else {}),  # what the server asks for, its clients have
        **without_database(os.environ),
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


def prefect_command(*arguments: str) -> list[str]:
    """The installed Prefect's command."""
    return [sys.executable, "-m", "prefect", *arguments]


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


def wait_until_healthy(port: int, supervisor: Supervisor, limit: float = 300.0) -> None:
    """Wait for the server, which is the supervisor's first child.

    Raises:
        RunFailed: it ended, or does not answer within `limit` seconds; the message ends with its last log lines.
    """
    started = time.monotonic()
    server = supervisor.children[0]
    while not healthy(port):
        if not server.alive or time.monotonic() - started > limit:
            raise RunFailed(f"Prefect's server did not start. Its log is {server.log}; it ends with:\n{server.tail()}")
        time.sleep(0.25)
