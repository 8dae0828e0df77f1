"""`de demo` and `de app`: commands that run a flow or a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.options import Overrides, Params, Seed


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for everything.")] = Path("demo"),
    seed: Seed = 0,
    params: Params = None,
    overrides: Overrides = None,
) -> None:
    """See the whole engine work on the embedded world: train, generate, review, compare, report.

    Needs no data, no GPU and no network. Run again, it goes on where it stopped. Example: de demo --out demo
    """
    from tasks.server import use_temporary_server

    use_temporary_server(out / ".prefect")
    from flows.demo import demo as run
    from tasks.scores import verdict_line

    comparison = run(str(out), seed, None if params is None else str(params), list(overrides or []))
    typer.echo(f"{verdict_line(comparison)}\nReport: {comparison.report}")


def app(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a generated dataset.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 5151,
    real: Annotated[
        Path | None, typer.Option("--real", metavar="DIR", help="The dataset it was generated from, to show sources.")
    ] = None,
    reviewer: Annotated[
        str | None, typer.Option("--reviewer", metavar="NAME", help="Who decides here, on a queue of their own.")
    ] = None,
    reviewers: Annotated[
        str, typer.Option("--reviewers", metavar="NAME,NAME", help="All who share the images out; once is enough.")
    ] = "",
) -> None:
    """Open a generated dataset in the FiftyOne App, on this machine only.

    Example: de app runs/bccd-de --real data/bccd. Two people: de app runs/bccd-de --reviewer anna --reviewers anna,ben
    and de app runs/bccd-de --reviewer ben --port 5152
    """
    from tasks.app import launch_app

    names = [name for name in reviewers.split(",") if name.strip()]
    say = lambda url: typer.echo(f"The FiftyOne App: {url}\nCtrl-C stops it.")  # noqa: E731
    launch_app(folder, port, real=real, announce=say, reviewer=reviewer, reviewers=names)
