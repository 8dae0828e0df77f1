"""Work pool and deployments of the workspace in the current folder, for a Prefect server that `de up` did not start.

Run as `python -m tasks.prepare_server [LIMIT]`, with PREFECT_API_URL set: docs/deploy.md.
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
    if not answers(url):
        return "No Prefect server answers at PREFECT_API_URL. Set it, or start the server."
    try:
        asyncio.run(_prepare(int(limit), workspace))
    except RunFailed as error:
        return str(error)
    return None


async def _prepare(limit: int, workspace: Path) -> None:
    await prepare_pool(limit)
    for line in await register_deployments(workspace, workspace / "prefect.yaml", os.environ):
        print(f"Schedule of {line}.")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
