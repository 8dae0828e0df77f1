"""`de plan`, `de generate` and `de resume`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from engine.errors import ConfigError
from flows.exits import printable
from flows.options import Data, Ldm, Overrides, Params, Seed, Store

Adapter = Annotated[Path, typer.Option("--adapter", metavar="DIR", help="Folder of the adapter.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the generated dataset.")]
Images = Annotated[
    int | None,
    typer.Option(
        "--images", metavar="N", min=1, help="How many to draw; else generation.variants_per_image of each source."
    ),
]
Workers = Annotated[int, typer.Option("--workers", metavar="K", min=1, help="Processes; one per GPU.")]


def plan(
    data: Data,
    adapter: Adapter,
    out: Out,
    images: Images = None,
    ldm: Ldm = None,
    workers: Workers = 1,
    store: Store = None,
    seed: Seed = 0,
    calibrate: Annotated[
        int | None,
        typer.Option(
            "--calibrate",
            metavar="N",
            min=0,
            help="Images to draw for the clock; without it as many as fill the model's calls; 0: no times.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures, for machines.")
    ] = None,
    params: Params = None,
    overrides: Overrides = None,
) -> None:
    """Show what `de generate` would do with the same options: counts, disk, time. Nothing is written to --out.

    Ends with code 2 where the disk of --out cannot hold it. Example:
    de plan --data data/bccd --ldm models/bccd-ldm --adapter models/bccd-adapter --out runs/bccd-de --images 400
    """
    from engine.generation.preview import preview
    from engine.generation.source import DrawerSource
    from flows.plan_table import plan_table
    from tasks.settings import open_settings

    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise ConfigError(f"--json {json_file}: there is no folder {json_file.parent}. Make it, or name another file.")
    model, settings = open_settings(params, overrides or [], ldm)
    report = preview(DrawerSource(data, model, adapter, settings), out, images, seed, workers, calibrate, store)
    typer.echo(printable(plan_table(report)))
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def generate(
    data: Data,
    adapter: Adapter,
    out: Out,
    images: Images = None,
    ldm: Ldm = None,
    workers: Workers = 1,
    store: Store = None,
    seed: Seed = 0,
    params: Params = None,
    overrides: Overrides = None,
) -> None:
    """Draw new images from your training images and label them in the same pass.

    A run that was stopped goes on with the same command. Example:
    de generate --data data/bccd --ldm models/bccd-ldm --adapter models/bccd-adapter --out runs/bccd-de --images 400
    """
    from engine.generation.run import generate as run
    from tasks.settings import open_settings

    model, settings = open_settings(params, overrides or [], ldm)
    _tell(out, run(data, model, adapter, out, images, seed, settings, workers, store=store)["counts"])


def resume(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run that `de generate` began.")],
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="K", min=1, help="Processes; else as many as it began with.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every byte first; draw again what has changed on the disk.")
    ] = False,
) -> None:
    """Finish a run from what is in its folder: draw the shards that are not done, and merge.

    Example: de resume runs/bccd-de
    """
    from engine.generation.run import resume as run

    _tell(out, run(out, workers, verify=verify, tell=typer.echo)["counts"])


def _tell(out: Path, counts: dict) -> None:
    dropped, failed = sum(counts["dropped"].values()), sum(counts["failed"].values())
    typer.echo(
        f"{counts['kept']} images with {counts['boxes']} boxes are in {out} "
        f"(planned {counts['planned']}, dropped {dropped}, failed {failed})."
    )
