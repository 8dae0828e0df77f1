"""The pool as the output of the stage `pool`: what `de pool` writes, and a promoted night records as a version."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from engine.curation.pool import copy_pool
from engine.errors import ConfigError, DatasetError, RunConflict
from engine.evaluation.results import read_results, write_results
from engine.report.dataset_card import write_card
from engine.sections import Settings
from tasks.night_file import Night, Nights
from tasks.stages import read_stage
from tasks.verdict import set_verdict
from tasks.version import record, why_not_recorded
from tasks.version_entry import PROMOTED
from tasks.version_list import is_in_git

STAGE = "pool"


def write_pool(nights: Nights, out: Path, data: Path, ldm: Path, adapter: Path) -> int:
    """Make `out` the pool that the nights have promoted; an empty folder where they have promoted none yet.

    Args:
        data, ldm, adapter: what it was drawn from, for the licences in CARD.md; they need not be there.

    Returns:
        The number of images.

    Raises:
        DatasetError: the pool is not here, was changed, or `out` was changed by hand.
    """
    promoted = nights.promoted()
    if not promoted:
        if out.exists() and any(out.iterdir()):
            raise DatasetError(
                f"No night of {nights.folder} is promoted, and {out} is not empty. Remove it, or bring back "
                f"{nights.folder / 'promoted.json'}."
            )
        out.mkdir(parents=True, exist_ok=True)
        nights.promote(None)
        return 0
    manifest = copy_pool(nights.folder / promoted, out)
    if not (out / "CARD.md").exists():
        write_card(out, out.name, *(folder if folder.is_dir() else None for folder in (data, ldm, adapter)))
    return manifest["images"]


def version_pool(
    nights: Nights, night: Night, options: Mapping[str, str], settings: Settings, dataset: str
) -> tuple[str | None, str | None]:
    """Make the promoted pool a version of the current folder's workspace, with the night's verdict. After a kill the
    same call ends in the same version.

    Args:
        options: data, ldm and adapter, as the flow was given them.
        dataset: the version is tagged <dataset>-v<N>; "" for none.

    Returns:
        (its tag, None) or (None, why there is none) or (its tag, why it is not in DVC's remote).

    Raises:
        DatasetError: the stage's output was changed by hand, so that something would be lost.
        RunFailed: DVC or git failed, say in the middle of a merge, or without a name to commit under.
    """
    workspace = Path()
    note = _why_not(workspace, dataset)
    if note:
        return None, note
    try:
        tag, note = _record(nights, options, settings, dataset, workspace)
    except (RunConflict, ConfigError) as error:  # these nights are not the stage's work
        return None, str(error)
    if tag:
        compared = nights.folder_of(night) / "comparison"
        set_verdict(tag, PROMOTED, f"night {night.number}: {night.reason}", workspace, compared)
        _pin(compared / "results.json", tag)
    return tag, note


@task(name="record-pool", cache_policy=NO_CACHE, persist_result=False)
def record_pool(
    nights: Nights, night: Night, options: Mapping[str, str], settings: Settings, dataset: str
) -> tuple[str | None, str | None]:
    """`version_pool`, and say what came of it."""
    tag, note = version_pool(nights, night, options, settings, dataset)
    text = f"The pool is {tag}." if tag else "The pool is in no version."
    if note:
        get_run_logger().warning("%s %s", text, note)
    create_markdown_artifact(" ".join([text, note or ""]), "version")
    return tag, note


def _why_not(workspace: Path, dataset: str) -> str | None:
    if not dataset:
        return "No name for versions was given."
    reason = why_not_recorded(STAGE, workspace)
    if reason is None and not is_in_git(workspace):
        reason = f"{workspace.absolute()} is in no git repository"
    return reason and f"Nothing was versioned: {reason}."


def _record(
    nights: Nights, options: Mapping[str, str], settings: Settings, dataset: str, workspace: Path
) -> tuple[str | None, str | None]:
    wanted = read_stage(workspace, STAGE)
    if not wanted.same_path("nights", nights.folder):
        return None, f"Nothing was versioned: the nights are in {nights.folder}, the stage reads others."
    out = workspace / wanted.options["out"]
    write_pool(nights, out, *(Path(options[name]) for name in ("data", "ldm", "adapter")))
    recorded = record(STAGE, {**options, "nights": nights.folder, "out": out}, settings, workspace, dataset)
    return recorded.tag, recorded.skipped or recorded.unpushed


def _pin(path: Path, tag: str) -> None:
    """The comparison came before the version that it speaks for: name that in its results."""
    results = read_results(path)
    pinned = results.get("trained_on", {}).get("generated")
    if pinned and pinned.get("version") != tag:
        pinned["version"] = tag
        write_results(path, results)
