"""The process that serves the FiftyOne App: FiftyOne's own server behind our guard.

Run as `python -m tasks.app_server PORT`; the environment says which database and whose queue.
"""

from __future__ import annotations

import asyncio
import os
import sys

from tasks.app_guard import Guard
from tasks.app_queues import REVIEWER
from tasks.fiftyone_dataset import QUEUE
from tasks.ports import HOST


def main(port: int) -> None:
    """Serve until the process is told to end."""
    from fiftyone.server import main as server  # connects to the database

    server.app = Guard(server.app, os.environ.get(REVIEWER) or None, _queue_of)
    server.start_server(port=port, address=HOST)


async def _queue_of(dataset: str, sample: str) -> str | None:
    return await asyncio.to_thread(_look_up, dataset, sample)


def _look_up(dataset: str, sample: str) -> str | None:
    """Whose queue a sample is in. What cannot be found is left for FiftyOne to complain about."""
    from fiftyone.core import odm

    try:
        return odm.load_dataset(id=dataset)[sample][QUEUE]
    except (ValueError, KeyError, AttributeError):
        return None


if __name__ == "__main__":
    main(int(sys.argv[1]))
