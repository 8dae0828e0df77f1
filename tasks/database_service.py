"""The process by which `de up` keeps MongoDB running: a user of the database that stays.

It ends when the server does, so that its supervisor starts both again. Commands and flows share the server as ever.
Run as `python -m tasks.database_service`.
"""

from __future__ import annotations

import signal
import sys
import time

from engine.errors import RunFailed
from tasks.database import database, own_server_uri
from tasks.home import home_folder


def main() -> str | None:
    """Stay until SIGTERM; returns why it ended otherwise."""
    signal.signal(signal.SIGTERM, _leave)
    try:
        with database() as uri:
            print(f"MongoDB answers; its own log is {home_folder() / 'mongo' / 'mongod.log'}", flush=True)
            while own_server_uri() == uri:
                time.sleep(0.5)
        return "MongoDB has ended."
    except RunFailed as error:
        return str(error)


def _leave(number: int, frame: object) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
