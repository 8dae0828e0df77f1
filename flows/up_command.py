"""`de up`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def up(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of Prefect's server on 127.0.0.1.")] = 4200,
    app_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the FiftyOne App on 127.0.0.1.")] = 5151,
    shown: Annotated[
        Path | None,
        typer.Option("--app", metavar="DIR", help="Generated dataset that the App shows; else the newest one here."),
    ] = None,
    no_app: Annotated[
        bool,
        typer.Option("--no-app", help="Neither the App nor MongoDB; a flow that reviews starts MongoDB for itself."),
    ] = False,
    limit: Annotated[
        int, typer.Option(min=1, max=64, help="Flows that run at once: one per GPU. For many, see --database.")
    ] = 1,
    database: Annotated[
        str | None,
        typer.Option(
            "--database",
            metavar="URL",
            help="PostgreSQL for Prefect's history: postgresql+asyncpg://user@host:5432/name, with the password in "
            "~/.pgpass or PGPASSWORD. A URL with a password goes into PREFECT_SERVER_DATABASE_CONNECTION_URL. "
            "Without either, SQLite in .prefect/.",
        ),
    ] = None,
    prefect_file: Annotated[
        Path | None, typer.Option("--prefect-file", metavar="FILE", help="Deployments; else ./prefect.yaml.")
    ] = None,
) -> None:
    """Run the workspace on this machine until Ctrl-C: Prefect's server and worker, MongoDB, the FiftyOne App.

    All listen on 127.0.0.1 only. What dies is started again. In a terminal one page shows every service, the flows
    that run, that come next and that ended; in a pipe or under systemd each change is a line. MongoDB is not started
    where FIFTYONE_DATABASE_URI names one. The deployments of prefect.yaml are registered; a schedule that you switch
    on or off (prefect deployment schedule resume|pause) stays so until prefect.yaml says something new about it.

    Example: de up, and in another terminal: prefect deployment run 'generate-coco-de/default' -p images=8
    """
    from rich.console import Console

    from flows.up_page import open_page
    from tasks.up import UpRequest
    from tasks.up import up as run

    request = UpRequest(Path().absolute(), port, app_port, limit, prefect_file, database, not no_app, shown)
    with open_page(Console(highlight=False, soft_wrap=False)) as (show, say):
        run(request, show, say)
