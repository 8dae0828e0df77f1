"""`de study`: one of the settings that generated data is claimed to help in, from labels to a table."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from flows.options import Ldm, Overrides, Params, Seed
from flows.study_presets import DETECTORS, PRESETS, SIZES, check_options


def study(
    preset: Annotated[str, typer.Argument(metavar="PRESET", help=f"{', '.join(PRESETS)}.")],
    real: Annotated[Path, typer.Option("--real", metavar="DIR", help="Dataset folder with train, val and test.json.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of all that is made; it goes on there.")],
    ldm: Ldm = None,
    target: Annotated[
        Path | None, typer.Option("--target", metavar="DIR", help="cross-domain: the dataset of the other domain.")
    ] = None,
    style: Annotated[
        str | None,
        typer.Option(
            "--style",
            metavar="WORDS",
            help="cross-domain: the other domain in words, behind every prompt. Without it, generation.style of the "
            "settings, else the name of --target's folder.",
        ),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            "--sizes",
            metavar="LIST",
            help=f"Labelled images of each case: numbers, or shares as 10%. Without it, {','.join(SIZES)}.",
        ),
    ] = None,
    detectors: Annotated[
        str | None,
        typer.Option(
            "--detectors",
            metavar="LIST",
            help=f"detectors: values of detector.name. Without it, {','.join(DETECTORS)}.",
        ),
    ] = None,
    times: Annotated[
        float, typer.Option("--times", metavar="X", min=0.01, help="Images to draw for each that is drawn from.")
    ] = 2.0,
    fit: Annotated[
        bool, typer.Option("--fit", help="Fit the diffusion model to the pictures of each case first.")
    ] = False,
    seeds: Annotated[int | None, typer.Option("--seeds", metavar="N", min=2, help="Trainings per arm.")] = None,
    seed: Seed = 0,
    params: Params = None,
    overrides: Overrides = None,
) -> None:
    """Run a setting of the paper, case after case: adapter, images, review, comparison, and one table of them all.

    \b
    data-sparse      few pictures, all labelled
    label-scarce     few labels, images drawn from all pictures
    semi-supervised  the same, beside the adapter's labels on the bare pictures
    cross-domain     labels of --real, pictures and test of --target, whose domain the prompts name
    pretrain         generated images first, then real ones
    detectors        the same images, several detectors
    neighbours       copy-paste, inpainting, generate then detect, cross-attention

    A study that was stopped goes on with the same command. With --fit no case sees pictures that it may not have.

    Example: de study label-scarce --real data/bccd --ldm models/bccd-ldm --out runs/scarce --sizes 10%,25%
    """
    from engine.data.dataset import read_dataset
    from engine.evaluation.study import study_table
    from flows.study import StudyRequest, run_study
    from tasks.settings import open_settings

    check_options(preset, {"--sizes": sizes, "--detectors": detectors, "--target": target, "--style": style})
    given = tuple(overrides or ())
    began = time.monotonic()
    request = StudyRequest(
        *(preset, real, target, out, times, seed, fit, seeds),
        lambda more: open_settings(params, (*given, *more), ldm),
        style,
    )
    listed = (SIZES if sizes is None else _listed(sizes), DETECTORS if detectors is None else _listed(detectors))
    cases = PRESETS[preset](len(read_dataset(real, "train").images), *listed)
    result = run_study(request, cases, typer.echo)
    typer.echo(f"\n{study_table(result)}\n\n{(time.monotonic() - began) / 60:.0f} min. Report: {out / 'study.html'}")


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
