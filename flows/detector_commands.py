"""A detector to keep: train it, and use it on pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.options import Overrides, Params, Seed


def train_detector(
    real: Annotated[Path, typer.Option("--real", metavar="DIR", help="Dataset folder with train.json.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the detector; a run cut off goes on.")],
    generated: Annotated[
        Path | None, typer.Option("--generated", metavar="DIR", help="A generated dataset to train on too.")
    ] = None,
    seed: Seed = 0,
    params: Params = None,
    overrides: Overrides = None,
) -> None:
    """Train one detector and keep it: on real images, or on real and generated ones as `de compare` mixes them.

    It is measured on val.json; what the generated images are worth says `de compare`, which keeps no weights.
    detector.* says which detector and how long, compare.generated_share how much of a batch is generated. Example:
    de train-detector --real data/bccd --generated runs/bccd-de --out models/bccd-detector
    """
    from engine.evaluation.train_detector import train_detector as run
    from tasks.settings import open_settings

    settings = open_settings(params, overrides or [])[1]
    card = run(real, out, settings, generated, seed)
    score = card.get("validation", {}).get("map")
    measured = "no val.json to measure it on" if score is None else f"AP {100 * score:.1f} on the validation images"
    typer.echo(f"The detector is in {out}: {measured}. Use it with: de detect PICTURES --detector {out} --out DIR")


def detect(
    pictures: Annotated[Path, typer.Argument(metavar="PICTURES", help="Folder of pictures, with all below it.")],
    detector: Annotated[Path, typer.Option("--detector", metavar="DIR", help="Folder of a trained detector.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="New dataset folder of what it found.")],
    score: Annotated[float, typer.Option(min=0.0, max=1.0, help="Boxes from this score on.")] = 0.3,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Find objects on pictures with a detector of `de train-detector`: annotations.json in COCO's format, and a sheet
    of examples to look at.

    Example: de detect ~/pictures --detector models/bccd-detector --out runs/found
    """
    from engine.errors import ConfigError
    from engine.evaluation.detect import SHEET
    from engine.evaluation.detect import detect as run

    if device not in ("auto", "cpu", "cuda", "mps"):
        raise ConfigError(f"--device {device}: write auto, cpu, cuda or mps.")
    found = run(pictures, detector, out, score, device)
    typer.echo(
        f"{found['boxes']} boxes on {found['images']} pictures: {out / 'annotations.json'}. Look at {out / SHEET}."
    )
    for name, why in found["refused"][:10]:
        typer.echo(f"  refused: {name}: {why}")
    if len(found["refused"]) > 10:
        typer.echo(f"  and {len(found['refused']) - 10} more were refused")
