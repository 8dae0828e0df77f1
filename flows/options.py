"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engine.errors import ConfigError

Params = Annotated[
    Path | None,
    typer.Option("--params", metavar="FILE", help="Settings file. Without it, params.yaml of the current folder."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Set one value; may be given again and again."),
]
Data = Annotated[Path, typer.Option("--data", metavar="DIR", help="Dataset folder (`de import` makes one).")]
Ldm = Annotated[
    str | None,
    typer.Option(
        "--ldm",
        metavar="DIR|ID",
        help="Diffusion model: a folder in diffusers' format, a hub id, or 'world' (the small one that ships). "
        "Without it, ldm.id of the settings.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same result.")]
Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="Where plan and shards are, if not in the folder itself: s3://bucket/prefix, gs://, sftp://. "
        "Credentials come from the environment.",
    ),
]


def named_folders(texts: list[str]) -> dict[str, Path]:
    """{NAME: DIR} of options --arm NAME=DIR.

    Raises:
        ConfigError: one is not of that form, or a name is given twice.
    """
    named: dict[str, Path] = {}
    for text in texts:
        name, found, folder = text.partition("=")
        if not (found and name and folder) or name in named:
            raise ConfigError(f"--arm {text}: write --arm NAME=DIR, every name once.")
        named[name] = Path(folder)
    return named
