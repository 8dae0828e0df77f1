"""The neighbours of the method, as commands: each writes a dataset folder for `de compare --arm NAME=DIR`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from engine.baselines.request import INPAINT_STRENGTH
from flows.options import Data, Ldm, Overrides, Params, Seed

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="New dataset folder.")]
Drawn = Annotated[Path, typer.Option("--generated", metavar="DIR", help="A generated dataset, to be labelled.")]
Images = Annotated[int, typer.Option("--images", metavar="N", min=1, help="Pictures to make.")]

app = typer.Typer(
    no_args_is_help=True,
    help="Other ways to more labelled images, to compare the engine with: `de compare --arm NAME=DIR` takes them.",
)


@app.command("copy-paste")
def copy_paste(
    data: Data, out: Out, images: Images, seed: Seed = 0, params: Params = None, overrides: Overrides = None
) -> None:
    """Paste objects of training images onto training images; by their masks where they have some, else by boxes.

    Example: de baseline copy-paste --data data/bccd --out runs/bccd-paste --images 400
    """
    _make("copy_paste", out, params, overrides, data=data, images=images, seed=seed)


@app.command("inpaint")
def inpaint(
    data: Data,
    out: Out,
    images: Images,
    ldm: Ldm = None,
    strength: Annotated[
        float, typer.Option("--strength", min=0.0, max=1.0, help="Encode ratio: how far the background is drawn anew.")
    ] = INPAINT_STRENGTH,
    seed: Seed = 0,
    params: Params = None,
    overrides: Overrides = None,
) -> None:
    """Keep the objects of training images, with their boxes, and have the background drawn anew.

    Example: de baseline inpaint --data data/bccd --ldm models/bccd-ldm --out runs/bccd-inpaint --images 400
    """
    # Of all images, whatever range the settings have for generation.
    ranges = [f"generation.strength_{end}={strength}" for end in ("min", "max")]
    _make("inpaint", out, params, [*(overrides or []), *ranges], ldm, data=data, images=images, seed=seed)


@app.command("detector")
def detector(
    data: Data, generated: Drawn, out: Out, seed: Seed = 0, params: Params = None, overrides: Overrides = None
) -> None:
    """Generate, then detect: a detector trained on the same labels labels the generated images.

    Example: de baseline detector --data data/bccd --generated runs/bccd-de --out runs/bccd-detected
    """
    _make("detector", out, params, overrides, data=data, generated=generated, seed=seed)


@app.command("attention")
def attention(
    generated: Drawn,
    out: Out,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="DIR", help="Dataset folder whose val.json the attention's threshold is chosen on."
        ),
    ] = None,
    ldm: Ldm = None,
    params: Params = None,
    overrides: Overrides = None,
) -> None:
    """Label the generated images by the model's cross-attention to the words of their prompts.

    Example: de baseline attention --data data/bccd --generated runs/bccd-de --ldm models/bccd-ldm --out runs/attention
    """
    _make("attention", out, params, overrides, ldm, data=data, generated=generated)


def _make(
    name: str, out: Path, params: Path | None, overrides: list[str] | None, ldm: str | None = None, **asked
) -> None:
    from engine.baselines.making import make_baseline
    from engine.baselines.request import BaselineRequest
    from tasks.settings import open_settings

    model, settings = open_settings(params, overrides or [], ldm)
    settings = dataclasses.replace(settings, ldm=dataclasses.replace(settings.ldm, id=model))
    manifest, before = make_baseline(name, BaselineRequest(out, settings, **asked))
    counts = manifest["counts"]
    numbers = {"images": counts["kept"], "boxes": counts["boxes"], "ignored": counts["ignored"]}
    numbers["dropped"] = sum(counts["dropped"].values())
    words = ", ".join(f"{count} {what}" for what, count in numbers.items() if count or what in ("images", "boxes"))
    done = " This very request was finished before: nothing to do." if before else ""
    typer.echo(f"{out}: {words}.{done}")
