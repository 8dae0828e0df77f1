"""`de init`, `de doctor`, `de status`: the workspace and the machine that it is on."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from engine.errors import ConfigError
from flows.exits import printable
from flows.options import Seed

ROOT = Path(__file__).parents[1]
Share = typer.Option(
    min=0, max=0.9, help="Share of train to set aside for it; without the option, some where the source has none."
)


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The workspace: a new or an empty folder.")],
    data: Annotated[
        Path, typer.Option("--data", metavar="SRC", help="Your labelled images: a dataset folder, COCO, VOC, YOLO, ...")
    ],
    format: Annotated[str, typer.Option("--format", metavar="NAME", help="As for `de import`.")] = "auto",
    ldm: Annotated[
        str,
        typer.Option(
            "--ldm", metavar="DIR|ID", help="Diffusion model: 'world' (the small one that ships), or another."
        ),
    ] = "world",
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="COMMIT", help="Of a model on the hub, its commit.")
    ] = None,
    domain: Annotated[str, typer.Option("--domain", help="What your images are, for the prompts.")] = "photo",
    unlabelled: Annotated[
        Path | None, typer.Option("--unlabelled", metavar="DIR", help="Pictures without labels, to draw from too.")
    ] = None,
    val: Annotated[float | None, Share] = None,
    test: Annotated[float | None, Share] = None,
    seed: Seed = 0,
) -> None:
    """Make a workspace around your dataset: git, DVC, stages, settings, deployments, a first commit.

    Settings are chosen for your images and the diffusion model; params.yaml explains them. Example:
    de init bccd-workspace --data ~/bccd/VOC2007 --domain "blood smear"
    """
    from tasks.make_workspace import make_workspace

    made = make_workspace(folder, data, format, ldm, revision, domain, val, test, seed, unlabelled)
    values = made.values
    typer.echo(printable(made.data))
    typer.echo(
        printable(
            f"The workspace is {made.folder}: diffusion model {values.ldm} at {values.resolution} px "
            f"({values.why_resolution}); params.yaml has all settings."
        )
    )
    if not made.has_identity:
        typer.echo(
            "git does not know you: the first commit is nobody's. `git config --global user.name` and user.email"
        )
    typer.echo("Next:\n" + "\n".join(f"  {line}" for line in _next_commands(folder)))


def _next_commands(folder: Path) -> list[str]:
    """The lines to type, so that the stages find `de` on the PATH: behind `uv run` where this command was, say."""
    prefix, first = "", ""
    activate = Path(sys.executable).parent / "activate"
    if os.environ.get("UV") and (ROOT / "pyproject.toml").is_file():
        prefix = f"uv run --project {shlex.quote(str(ROOT))} "
    elif shutil.which("de") is None and activate.is_file():
        first = f"source {shlex.quote(str(activate))} && "
    return [
        f"{first}cd {shlex.quote(str(folder))}",
        f"{prefix}dvc repro    # fit the model, train the adapter, generate, review, compare",
        f"{prefix}de status    # what is there, and the answer",
        "git add -A && git commit -m 'First results'    # dvc.lock and the figures; data stays in DVC's cache",
    ]


def status(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The workspace; else the current folder.")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="The figures, for machines.")] = False,
) -> None:
    """Show a workspace: datasets, models, adapters, generated data, comparisons, versions, flows that run.

    Reads files only. Example: de status my-workspace
    """
    from flows.status_table import status_table
    from tasks.status import read_status

    found = read_status(folder)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found), indent=1))
    else:
        typer.echo(printable(status_table(found)))


def doctor(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The workspace; else the current folder.")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="The findings, for machines.")] = False,
) -> None:
    """Examine this machine and the workspace: packages, GPU, memory, disk, ports, database, git, DVC, settings.

    Every line says ok, warning or problem, and how to mend it; ends with code 1 where there is a problem. Example:
    de doctor my-workspace
    """
    from tasks.doctor import examine
    from tasks.doctor_check import PROBLEM, WARNING

    folder = folder.absolute()
    if not folder.is_dir():
        raise ConfigError(f"There is no folder {folder}. Name a workspace, or leave it out.")
    checks = []
    for check in examine(folder):
        checks.append(check)
        if not as_json:
            typer.echo(printable(f"{check.level:8} {check.name:18} {check.found}"))
            if check.cure:
                typer.echo(printable(f"{'':28}{check.cure}"))
    problems = sum(check.level == PROBLEM for check in checks)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(check) for check in checks], indent=1))
    else:
        typer.echo(f"Problems: {problems}, warnings: {sum(check.level == WARNING for check in checks)}.")
    if problems:
        raise typer.Exit(1)
