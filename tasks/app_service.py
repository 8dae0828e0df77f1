"""The process by which `de up` runs the FiftyOne App: loads the dataset, then becomes the App's server.

Run as `python -m tasks.app_service DIR PORT [REAL]`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from engine.errors import RunFailed, UserError
from tasks.app import app_command, app_environment, ensure_loaded
from tasks.app_queues import arrange, opened
from tasks.fiftyone_connection import connected_fiftyone


def main(generated: str, port: str, real: str | None = None) -> str:
    """Returns only where it cannot be done: why."""
    try:
        with connected_fiftyone() as fiftyone:
            name = ensure_loaded(fiftyone, Path(generated), Path(real) if real else None)
            arrange(fiftyone, name, None, ())
            environment = app_environment(fiftyone)
        with opened(name, None) as locks:
            for lock in locks:  # held until the server ends
                os.set_inheritable(lock, True)
            command = app_command(int(port))
            # One process instead of two, for the sake of memory. `de up` keeps MongoDB running: nothing is given back.
            os.execve(command[0], command, environment)
    except (UserError, RunFailed) as error:
        return str(error)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
