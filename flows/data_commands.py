"""`de import`, `de export`, `de validate`, `de verify`, `de subset`, `de add-pictures`, `de world`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engine.errors import DatasetError
from flows.options import Data, Overrides, Params, Seed, Store

MAX_LISTED = 20
OWN_FORMATS = ("auto", "coco", "voc", "yolo")


def import_(
    src: Annotated[Path, typer.Argument(metavar="SRC", help="Folder or annotation file of the source.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New dataset folder.")],
    format: Annotated[
        str, typer.Option("--format", metavar="NAME", help="auto, coco, voc, yolo, or a dataset type of FiftyOne.")
    ] = "auto",
    val: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of train to set aside as val, if there is none.")
    ] = 0,
    test: Annotated[float, typer.Option(min=0, max=0.9, help="Share of train to set aside as test, likewise.")] = 0,
    seed: Seed = 0,
    exif: Annotated[str, typer.Option(help="Frame of boxes on EXIF-turned pictures: auto, upright, stored.")] = "auto",
) -> None:
    """Turn labelled data into a dataset folder: images/ and train.json, val.json, test.json.

    Says what it changed and what it refused. Example: de import ~/bccd/VOC2007 data/bccd --format voc
    """
    if format in OWN_FORMATS:
        from engine.data.convert import import_dataset

        report = import_dataset(src, out, format, val=val, test=test, seed=seed, exif=exif)
    else:
        from tasks.importers import import_with_fiftyone

        report = import_with_fiftyone(src, out, format)
    typer.echo(report.text())


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Dataset folder, real or generated.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder.")],
    format: Annotated[str, typer.Option("--format", metavar="NAME", help="coco, voc, yolo or webdataset.")],
    rejected: Annotated[bool, typer.Option("--all", help="The images too that the review did not accept.")] = False,
    ignore_regions: Annotated[
        str,
        typer.Option(
            metavar="RULE",
            help="YOLO cannot say that a region is neither object nor background. leave-out: images with such a region "
            "stay behind; background: they go out without it.",
        ),
    ] = "leave-out",
    link: Annotated[bool, typer.Option("--link", help="Hard links to the pictures instead of copies.")] = False,
    shard_images: Annotated[int, typer.Option(min=1, help="Images in a WebDataset shard, at most.")] = 10_000,
    shard_mb: Annotated[int, typer.Option(min=1, help="Megabytes in a WebDataset shard, at most.")] = 1000,
) -> None:
    """Write a dataset for other programs: COCO, Pascal VOC, YOLO, or WebDataset's tar shards.

    Of a reviewed dataset only what training would use. Example: de export runs/generated runs/yolo --format yolo
    """
    from engine.data.export import ExportOptions, export_dataset
    from engine.data.parts import dataset_parts
    from engine.generation.integrity import check_unchanged

    if (folder / "annotations.json").is_file():
        check_unchanged(folder, (image for part in dataset_parts(folder, "annotations") for image in part.images))
    options = ExportOptions(rejected, ignore_regions, link, shard_images, shard_mb * 10**6)
    typer.echo(export_dataset(folder, out, format, options).text())


def validate(folder: Annotated[Path, typer.Argument(metavar="DIR", help="Dataset folder.")]) -> None:
    """Check a dataset folder completely: files, ids, boxes, images, splits.

    Ends with code 2 where it cannot be used. Example: de validate data/bccd
    """
    from engine.data.validate import validate_dataset

    findings = validate_dataset(folder)
    for finding in findings:
        typer.echo(f"{finding.severity}: {finding}")
    errors = sum(finding.severity == "error" for finding in findings)
    if errors:
        raise DatasetError(f"{folder} cannot be used as it is: {errors} errors, {len(findings) - errors} warnings.")
    typer.echo(f"{folder} can be used: no errors, {len(findings)} warnings.")


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a generated dataset.")],
    store: Store = None,
) -> None:
    """Read every byte of a generated dataset and compare it with what was committed.

    Says what it found; ends with code 2 where something was changed or lost. Example: de verify runs/generated
    """
    from engine.generation.run_file import store_of
    from engine.generation.verify import inspect

    found = inspect(folder, store or store_of(folder))
    if not found.shards:  # no plan, or a damaged one: nothing can be drawn again
        raise DatasetError("\n".join(found.problems))
    counts = found.counts
    typer.echo(
        f"Plan: {found.planned} items in {found.shards} shards. Shards: {found.whole} whole, "
        f"{len(found.missing)} missing, {len(found.bad)} bad.\n"
        f"In the whole ones: {counts.kept} images kept, {counts.dropped.total()} dropped, "
        f"{counts.failed.total()} failed, {counts.boxes} boxes."
    )
    if found.problems:
        listed = "\n".join(f"  {problem}" for problem in found.problems[:MAX_LISTED])
        raise DatasetError(
            f"{folder} is not as it was generated ({len(found.problems)} problems):\n{listed}\n"
            f"`de resume {folder} --verify` draws again what is not whole, and keeps the rest."
        )
    typer.echo(f"{folder} is whole and unchanged.")


def subset(
    data: Data,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="New dataset folder.")],
    images: Annotated[int | None, typer.Option("--images", metavar="N", min=1, help="Labelled images to keep.")] = None,
    percent: Annotated[
        float | None, typer.Option("--percent", min=0.01, max=100, help="Or so many percent of them.")
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option("--without", metavar="NAME", help="Leave this picture out, whatever split it is in; repeatable."),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Keep the labels of a few training images; the others become unlabelled.json, pictures without boxes.

    Validation and test stay as they are. Of one seed, a smaller choice is part of a larger one. With --without alone
    all labels stay: that is how one of two pictures that repeat each other is taken out.

    Example: de subset --data data/bccd --out data/bccd-10 --percent 10
    """
    from engine.data.dataset import read_dataset
    from engine.data.subset import write_subset
    from engine.errors import ConfigError

    left_out = without or []
    if images is not None and percent is not None or not (images or percent or left_out):
        raise ConfigError("de subset: give either --images or --percent, or --without alone to keep all labels.")
    if percent is not None:
        images = max(1, round(len(read_dataset(data, "train").images) * percent / 100))
    sizes = write_subset(data, out, images, seed, left_out)
    typer.echo(f"{out}: " + ", ".join(f"{split} {count}" for split, count in sizes.items()) + " images.")


def add_pictures(
    pictures: Annotated[Path, typer.Argument(metavar="PICTURES", help="Folder of pictures, with all below it.")],
    data: Data,
) -> None:
    """Add pictures that nobody labelled to a dataset folder, as unlabelled.json: new scenes to draw from.

    With `--set generation.unlabelled=true` generation draws from them too, and the adapter labels what it draws; that
    is where generated data helps most. In a workspace, `dvc add data/real` afterwards.
    Example: de add-pictures ~/unlabelled --data data/bccd
    """
    from engine.data.bare_pictures import add_pictures as add

    typer.echo(add(data, pictures).text())


def world(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="New dataset folder.")],
    train: Annotated[int | None, typer.Option(min=1, help="Images to train on; else demo.train_images.")] = None,
    val: Annotated[int | None, typer.Option(min=1, help="Images to validate on; else demo.val_images.")] = None,
    test: Annotated[int | None, typer.Option(min=1, help="Images to test on; else demo.test_images.")] = None,
    unlabelled: Annotated[int, typer.Option(min=0, help="Images without labels besides, to draw from.")] = 0,
    domain: Annotated[str, typer.Option("--domain", help="How it looks: paint or sketch, the same scenes.")] = "paint",
    seed: Seed = 0,
    params: Params = None,
    overrides: Overrides = None,
) -> None:
    """Write a labelled dataset of the embedded world: rendered scenes, synthetic and saying so.

    Example: de world --out data/world --train 150
    """
    from engine.data.world_domains import LOOKS
    from engine.data.world_folder import write_world
    from engine.errors import ConfigError
    from tasks.settings import EMBEDDED, open_settings

    if domain not in LOOKS:
        raise ConfigError(f"--domain {domain}: write one of {', '.join(LOOKS)}.")
    sizes = open_settings(params, overrides or [], EMBEDDED)[1].demo
    counts = (train or sizes.train_images, val or sizes.val_images, test or sizes.test_images)
    write_world(out, *counts, seed, domain, unlabelled)
    typer.echo(f"The embedded world is in {out}.")
