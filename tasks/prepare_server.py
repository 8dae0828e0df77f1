"""Work pool and deployments of the workspace in the current folder, for a Prefect server that `de up` did not start.

Run as `python -P -m tasks.prepare_server [LIMIT]`, with PREFECT_API_URL set: docs/deploy.md.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from engine.errors import RunFailed
from tasks.deployments import register_deployments
from tasks.pool import prepare_pool
from tasks.server import answers


def main(limit: str = "1") -> str | None:
    """Returns why it could not be done."""
    url, workspace = os.environ.get("PREFECT_API_URL", ""), Path().absolute()
    if not (limit.isdecimal() and int(limit)):
        return f"{limit} is no number of flows that run at once: give 1 or more."
    if not (workspace / "prefect.yaml").is_file():
        return f"No prefect.yaml in {workspace}: give this command in a workspace."
    if not answers(url):
        return "No Prefect server answers at PREFECT_API_URL. Set it, or start the server."
    from prefect.exceptions import PrefectHTTPStatusError

    try:
        asyncio.run(_prepare(int(limit), workspace))
    except RunFailed as error:
        return str(error)
    except PrefectHTTPStatusError as error:
        return f"Prefect's server refused ({error.response.status_code}). Is PREFECT_API_AUTH_STRING what it asks for?"
    return None


async def _prepare(limit: int, workspace: Path) -> None:
    await prepare_pool(limit)
    for line in await register_deployments(workspace, workspace / "prefect.yaml", os.environ):
        print(f"Schedule of {line}.")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
