"""The steps as plain commands: they call the engine directly and need no server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.options import Data, Ldm, Overrides, Params, Seed, named_folders

Generated = Annotated[Path, typer.Option("--generated", metavar="DIR", help="Folder of a generated dataset.")]


def train_ldm(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the model; a run cut off goes on.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the denoiser.")] = None,
    decoder_steps: Annotated[int | None, typer.Option(min=1, help="Steps of the decoder.")] = None,
    scenes: Annotated[int | None, typer.Option(min=1, help="Scenes to learn from.")] = None,
    start: Annotated[
        Path | None, typer.Option("--start", metavar="DIR", help="Train this model further, on other scenes.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the training.")] = None,
) -> None:
    """Train the embedded world's small diffusion model from nothing (about an hour of CPU at full length).

    Example: de train-ldm --out runs/world-ldm
    """
    import dataclasses

    from engine.ldm.pretrain import CONTINUED, PretrainSettings
    from engine.ldm.pretrain import train_ldm as run

    given = {"steps": steps, "decoder_steps": decoder_steps, "scenes": scenes, "seed": seed}
    base = PretrainSettings() if start is None else CONTINUED
    run(out, dataclasses.replace(base, **{k: v for k, v in given.items() if v is not None}), start)
    typer.echo(f"The diffusion model is in {out}.")


def adapt_ldm(
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Dataset folder, or a folder of images.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the new model; a run cut off goes on.")],
    ldm: Ldm = None,
    params: Params = None,
    overrides: Overrides = None,
) -> None:
    """Fit a diffusion model to your own images; labels are not used, nor val or test images.

    Example: de adapt-ldm --data data/bccd --ldm world --out models/bccd-ldm --set adapt_ldm.steps=3000
    """
    from engine.ldm.adapt import adapt_ldm as run
    from tasks.settings import open_settings

    base, settings = open_settings(params, overrides or [], ldm)
    run(data, base, out, settings)
    typer.echo(f"The adapted diffusion model is in {out}.")


def train_adapter(
    data: Data,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the adapter.")],
    ldm: Ldm = None,
    params: Params = None,
    overrides: Overrides = None,
) -> None:
    """Train the Detection-Adapter on your labelled images, and measure it on the validation images.

    Example: de train-adapter --data data/bccd --ldm models/bccd-ldm --out models/bccd-adapter
    """
    from engine.adapter.train import train_adapter as run
    from tasks.settings import open_settings

    model, settings = open_settings(params, overrides or [], ldm)
    card = run(data, model, out, settings)
    score = card.get("validation", {}).get("map")
    measured = "no val.json to measure it on" if score is None else f"AP {100 * score:.1f} on the validation images"
    typer.echo(f"The adapter is in {out}: {measured}.")


def label(
    data: Data,
    adapter: Annotated[Path, typer.Option("--adapter", metavar="DIR", help="Folder of the adapter.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="New folder of the labelled pictures.")],
    ldm: Ldm = None,
    params: Params = None,
    overrides: Overrides = None,
) -> None:
    """Label the pictures of unlabelled.json with an adapter, by the thresholds of generation. Nothing is drawn.

    As an arm of a comparison they show what labels on real pictures are worth beside generated ones. Example:
    de label --data data/bccd-10 --ldm models/bccd-ldm --adapter models/bccd-adapter --out runs/bccd-labelled
    """
    from engine.adapter.pseudo_labels import label_pictures
    from tasks.settings import open_settings

    model, settings = open_settings(params, overrides or [], ldm)
    counts = label_pictures(data, model, adapter, out, settings)
    typer.echo(
        f"{out}: {counts['images']} pictures with {counts['boxes']} boxes and {counts['ignored']} ignore regions; "
        f"{counts['dropped']} pictures without a box are left out."
    )


def adapter_report(
    adapter: Annotated[Path, typer.Option("--adapter", metavar="DIR", help="Folder of the adapter.")],
    data: Data,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of report.html and quality.json.")],
    ldm: Ldm = None,
    images: Annotated[
        int, typer.Option("--images", metavar="N", min=1, help="Validation images to draw anew, once per encode ratio.")
    ] = 50,
    record: Annotated[
        bool, typer.Option("--record/--no-record", help="Add a summary, and thresholds asked for, to its card.")
    ] = True,
    seed: Seed = 0,
    params: Params = None,
    overrides: Overrides = None,
) -> None:
    """Measure how good an adapter's labels are, on val.json, before anything is generated.

    Precision by class and score, thresholds, and the same after img2img. Example:
    de adapter-report --adapter models/bccd-adapter --data data/bccd --ldm models/bccd-ldm --out runs/bccd-quality
    """
    from engine.report.quality_page import report_quality
    from tasks.settings import open_settings

    model, settings = open_settings(params, overrides or [], ldm)
    numbers = report_quality(data, model, adapter, out, settings, images, seed, record)
    score = numbers["real"]["map"]
    measured = "no object in val.json to measure it on" if score is None else f"AP {100 * score:.1f}"
    typer.echo(f"{measured} on {numbers['data']['images']} validation images. Report: {out / 'report.html'}")


def review(
    generated: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a generated dataset.")],
    real: Annotated[Path, typer.Option("--real", metavar="DIR", help="The dataset it was generated from.")],
    fiftyone: Annotated[
        str, typer.Option(help="required, skip (go on where FiftyOne cannot start) or off.")
    ] = "required",
    collect: Annotated[bool, typer.Option("--collect", help="Only fetch what was decided in the App.")] = False,
    reviewer: Annotated[
        str | None, typer.Option("--reviewer", metavar="NAME", help="With --collect: who corrected the boxes.")
    ] = None,
    ldm: Annotated[
        str | None,
        typer.Option("--ldm", metavar="DIR|ID", help="Compare images by this diffusion model's features too."),
    ] = None,
    params: Params = None,
    overrides: Overrides = None,
) -> None:
    """Decide which generated images training may use: gates first, your decisions in the App above them.

    What the gates found is in DIR/gates.json. Example: de review runs/bccd-de --real data/bccd
    """
    from engine.errors import ConfigError
    from tasks.collect import collect as collect_decisions
    from tasks.review import review as run
    from tasks.review_summary import gate_lines
    from tasks.settings import open_ldm, open_settings

    if fiftyone not in ("required", "skip", "off"):
        raise ConfigError(f"--fiftyone {fiftyone}: write required, skip or off.")
    if collect:
        summary = collect_decisions(generated, reviewer)
    else:
        settings = open_settings(params, overrides or [])[1]
        searched = None if ldm is None else open_ldm(params, overrides or [], ldm)
        summary = run(generated, real, settings, fiftyone=fiftyone, ldm=searched)
    for line in [] if summary.gates is None else gate_lines(summary.gates):
        typer.echo(line)
    reasons = "".join(f", {count} {reason}" for reason, count in summary.reasons.items())
    typer.echo(f"{summary.accepted} of {summary.images} images are accepted ({summary.rejected} rejected{reasons}).")
    if summary.edited:
        typer.echo(f"Boxes of {summary.edited} images were corrected by hand; training uses them.")
    if summary.skipped:
        typer.echo(f"FiftyOne was left out: {summary.skipped}", err=True)


def compare(
    real: Annotated[Path, typer.Option("--real", metavar="DIR", help="Dataset folder with train.json and test.json.")],
    generated: Generated,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of report.html and results.json.")],
    seeds: Annotated[int | None, typer.Option("--seeds", metavar="N", min=2, help="Trainings per arm.")] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option("--arm", metavar="NAME=DIR", help="A further generated dataset, compared too; may be repeated."),
    ] = None,
    ldm: Annotated[
        str | None,
        typer.Option("--ldm", metavar="DIR|ID", help="Search for leaks with this diffusion model's features too."),
    ] = None,
    params: Params = None,
    overrides: Overrides = None,
) -> None:
    """Train the same detector on real and on real + generated data: does it help?

    Controls as further arms: --set 'compare.controls=[strong_augmentation, source_labels]'; a scaling curve: --set
    'compare.scaling=[1, 2, 4]'. Example:
    de compare --real data/bccd --generated runs/bccd-de --out runs/bccd-compare --seeds 3
    """
    from engine.evaluation.compare import compare as run
    from tasks.scores import summarise, verdict_line, write_plot_data
    from tasks.settings import open_ldm, open_settings
    from tasks.version_list import tag_of

    settings = open_settings(params, overrides or [])[1]
    searched = None if ldm is None else open_ldm(params, overrides or [], ldm)
    further = named_folders(arm or [])
    results = run(real, generated, out, settings, seeds, further=further, ldm=searched, version_of=tag_of)
    write_plot_data(results, out)
    comparison = summarise(results, out)
    said = [verdict_line(comparison), comparison.advice, f"Report: {comparison.report}"]
    typer.echo("\n".join(filter(None, said)))
