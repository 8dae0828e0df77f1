"""The neighbours of the method, as commands: each writes a dataset folder for `de compare --arm NAME=DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.options import Data, Ldm, Overrides, Params, Seed

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="New dataset folder.")]
Drawn = Annotated[Path, typer.Option("--generated", metavar="DIR", help="A generated dataset, to be labelled.")]

app = typer.Typer(
    no_args_is_help=True,
    help="Other ways to more labelled images, to compare the engine with: `de compare --arm NAME=DIR` takes them.",
)


@app.command("copy-paste")
def copy_paste(
    data: Data,
    out: Out,
    images: Annotated[int, typer.Option("--images", metavar="N", min=1, help="Pictures to make.")],
    seed: Seed = 0,
) -> None:
    """Paste objects of training images onto training images; by their masks where they have some, else by boxes.

    Example: de baseline copy-paste --data data/bccd --out runs/bccd-paste --images 400
    """
    from engine.baselines.copy_paste import copy_paste as run

    _say(out, run(data, out, images, seed))


@app.command("inpaint")
def inpaint(
    data: Data,
    out: Out,
    images: Annotated[int, typer.Option("--images", metavar="N", min=1, help="Pictures to make.")],
    ldm: Ldm = None,
    strength: Annotated[
        float, typer.Option("--strength", help="Encode ratio, 0 to 1: how far the background is drawn anew.")
    ] = 0.8,
    seed: Seed = 0,
    params: Params = None,
    overrides: Overrides = None,
) -> None:
    """Keep the objects of training images, with their boxes, and have the background drawn anew.

    Example: de baseline inpaint --data data/bccd --ldm models/bccd-ldm --out runs/bccd-inpaint --images 400
    """
    from engine.baselines.inpaint import inpaint as run
    from tasks.settings import open_settings

    model, settings = open_settings(params, overrides or [], ldm)
    _say(out, run(data, out, settings, model, images, seed, strength))


@app.command("detector")
def detector(
    data: Data, generated: Drawn, out: Out, seed: Seed = 0, params: Params = None, overrides: Overrides = None
) -> None:
    """Generate, then detect: a detector trained on the same labels labels the generated images.

    Example: de baseline detector --data data/bccd --generated runs/bccd-de --out runs/bccd-detected
    """
    from engine.baselines.relabelling import by_detector
    from tasks.settings import open_settings

    _say(out, by_detector(data, generated, out, open_settings(params, overrides or [])[1], seed))


@app.command("attention")
def attention(generated: Drawn, out: Out, ldm: Ldm = None, params: Params = None, overrides: Overrides = None) -> None:
    """Label the generated images by the model's cross-attention to the words of their prompts.

    Example: de baseline attention --generated runs/bccd-de --ldm models/bccd-ldm --out runs/bccd-attention
    """
    from engine.baselines.relabelling import by_attention
    from tasks.settings import open_settings

    model, settings = open_settings(params, overrides or [], ldm)
    _say(out, by_attention(generated, out, settings, model))


def _say(out: Path, counts: dict[str, int]) -> None:
    typer.echo(f"{out}: " + ", ".join(f"{count} {what}" for what, count in counts.items()) + ".")
