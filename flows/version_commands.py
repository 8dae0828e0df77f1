"""`de pool`, `de record`, `de versions`, `de checkout` and `de verdict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.exits import printable
from flows.options import Data

Name = Annotated[str, typer.Argument(metavar="VERSION", help="A version, such as coco-de-v3.")]


def pool(
    nights: Annotated[Path, typer.Option("--nights", metavar="DIR", help="Folder of the nights.")],
    data: Data,
    ldm: Annotated[Path, typer.Option("--ldm", metavar="DIR", help="Diffusion model that drew, for its licence.")],
    adapter: Annotated[Path, typer.Option("--adapter", metavar="DIR", help="Adapter that labelled.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the pool.")],
) -> None:
    """Bring the pool that the nights have promoted to one folder, a generated dataset with its card.

    A promoted night does the same and records it. Example:
    de pool --nights nights --data data/bccd --ldm models/ldm --adapter models/adapter --out pool
    """
    from tasks.night_file import Nights
    from tasks.night_pool import write_pool

    folder = Nights(nights)
    with folder.owned():
        images = write_pool(folder, out, data, ldm, adapter)
    typer.echo(f"{out}: {images} images." if images else f"No night is promoted yet: {out} is empty.")


def record(
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="A stage of dvc.yaml that is up to date.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the dataset or checkpoint.")],
) -> None:
    """Make what a stage wrote a version: committed to DVC and git, tagged <NAME>-v<N>, pushed to DVC's remote if any.

    A flow does the same when it is given `version`. Git is not pushed. Example: de record generate coco-de
    """
    from tasks.version import name_version

    recorded = name_version(stage, name)
    typer.echo(f"Stage '{stage}' is {recorded.tag}.")
    if recorded.unpushed:
        typer.echo(f"It is not in DVC's remote. {recorded.unpushed}", err=True)


def versions(
    as_json: Annotated[bool, typer.Option("--json", help="For machines: everything that is known.")] = False,
) -> None:
    """List the versions of datasets and checkpoints: size, parents, figures, verdict.

    Example: de versions --json
    """
    from flows.version_table import version_table
    from tasks.version_list import list_versions

    found = list_versions()
    if as_json:
        typer.echo(json.dumps([version.as_dict() for version in found], indent=1))
    else:
        typer.echo(printable(version_table(found)))


def checkout(
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Overwrite outputs that are in no version.")] = False,
) -> None:
    """Bring the outputs of a version back into the workspace, from DVC's cache or remote, and verify every byte.

    Code, settings and other stages stay as they are. Example: de checkout coco-de-v3
    """
    from tasks.checkout import checkout as run

    restored = run(name, force=force)
    typer.echo(f"{name} is back in {', '.join(restored.outputs)}: {restored.files} files, all as they were recorded.")
    if restored.differs:
        typer.echo(
            f"Its stage was run with other settings or parents than today's: {restored.differs}. `git diff {name} -- "
            f"params.yaml dvc.yaml` shows settings; `dvc repro` would make stage '{restored.version.stage}' anew."
        )


def verdict(
    name: Name,
    word: Annotated[str, typer.Argument(metavar="VERDICT", help="promoted, rejected or candidate.")],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, in a sentence.")],
    comparison: Annotated[
        Path | None, typer.Option("--comparison", metavar="DIR", help="Note this comparison on it too.")
    ] = None,
) -> None:
    """Say what became of a version, in its file under versions/, which is committed to git.

    Example: de verdict coco-de-v3 promoted --reason "+1.2 mAP over v2 on the same test split"
    """
    from tasks.verdict import set_verdict

    version = set_verdict(name, word, reason, comparison=comparison)
    typer.echo(f"{name} is {version.verdict}: {version.reason}")
