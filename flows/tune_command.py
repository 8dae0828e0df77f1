"""`de tune`: settings of generation chosen on validation images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.options import Data, Ldm, Overrides, Params, Seed

SHOWN = 10


def tune(
    data: Data,
    adapter: Annotated[Path, typer.Option("--adapter", metavar="DIR", help="Folder of the adapter.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of pool, trials and tuned.yaml.")],
    minutes: Annotated[float, typer.Option("--minutes", metavar="T", min=0.1, help="Time to spend.")] = 60.0,
    images: Annotated[int, typer.Option("--images", metavar="N", min=16, help="Images of the pool.")] = 600,
    ldm: Ldm = None,
    seed: Seed = 0,
    params: Params = None,
    overrides: Overrides = None,
) -> None:
    """Choose encode ratios, threshold, guidance and share on val.json, within a time that you state.

    Draws one pool of images over wide ranges, measures how far a detector of real images agrees with its labels, then
    trains on parts of it: many candidates briefly, the better ones with more seeds. test.json is only searched for
    images that the pool repeats. Once the time is over no training starts, and what is finished decides.
    A tuning that was stopped goes on with the same command, with more --minutes on more candidates.

    Example: de tune --data data/bccd --ldm models/bccd-ldm --adapter models/bccd-adapter --out runs/tune --minutes 60
    """
    from flows.tune import TuneRequest, tune
    from tasks.settings import open_settings

    model, settings = open_settings(params, overrides or [], ldm)
    report = tune(TuneRequest(data, model, adapter, out, settings, images, minutes, seed), typer.echo)
    typer.echo("\n| encode ratio | F1 of adapter and detector | images |\n|---|---|---|")
    for row in report["fidelity"]:
        f1 = "–" if row["f1"] is None else f"{100 * row['f1']:.1f}"
        typer.echo(f"| {row['low']:g} to {row['high']:g} | {f1} | {row['images']} |")
    typer.echo(
        "\n| ratio up to | guidance up to | score from | share | seeds | mAP | real | gain |\n" + 8 * "|---" + "|"
    )
    for t in report["trials"][:SHOWN]:
        ours, real = (100 * sum(t[key]) / len(t[key]) for key in ("map", "real"))
        typer.echo(
            f"| {t['strength_max']:g} | {t['guidance_max']:g} | {t['score']:g} | {t['share']:g} | {len(t['map'])} "
            f"| {ours:.1f} | {real:.1f} | {100 * t['gain']:+.1f} |"
        )
    best = report["trials"][0]
    if best["gain"] <= 0:
        typer.echo("\nNo candidate beats real data alone on the validation images; the first hurts least.")
    typer.echo(f"\nSettings: {out / 'tuned.yaml'}, after {report['minutes']:.0f} minutes.")
