"""Prefect task around `tasks.version.record`: an ordinary run that is not a stage's work stays an ordinary run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from engine.errors import ConfigError, RunConflict, RunFailed
from engine.sections import Settings
from tasks.verdict import note_comparison
from tasks.version import Recorded, record


@task(name="record", cache_policy=NO_CACHE, persist_result=False)
def record_version(
    stage: str, options: Mapping[str, object], settings: Settings, dataset: str | None = None
) -> Recorded:
    """Record the run in DVC where it did the stage's work; say why where it did not.

    Raises:
        RunConflict, ConfigError: a version `dataset` was asked for, and this run cannot become one.
    """
    try:
        recorded = record(stage, options, settings, dataset=dataset)
    except (RunConflict, ConfigError) as error:
        if dataset:
            raise
        recorded = Recorded(stage, skipped=str(error))
    if recorded.skipped:
        get_run_logger().warning("Stage '%s' is not recorded in DVC: %s", stage, recorded.skipped)
    if recorded.unpushed:
        get_run_logger().warning("%s is not in DVC's remote: %s", recorded.tag, recorded.unpushed)
    text = recorded.skipped or f"committed{f' as {recorded.tag}' if recorded.tag else ''}"
    text += f"\n\nNot in DVC's remote: {recorded.unpushed}" if recorded.unpushed else ""
    create_markdown_artifact(f"DVC stage `{stage}`: {text}", "version")
    return recorded


@task(name="note-comparison", cache_policy=NO_CACHE, persist_result=False)
def note_on_versions(out: Path) -> list[str]:
    """Note a comparison in the files of the versions that it was made on; says so where it was. Returns their names.

    A git that refuses does not undo a comparison that is done: it is a warning with the cure.
    """
    try:
        names = note_comparison(out)
    except RunFailed as error:
        cure = f"`de verdict VERSION candidate --reason ... --comparison {out}` notes it"
        get_run_logger().warning("The comparison in %s is noted at no version; %s. %s", out, cure, error)
        return []
    if names:
        get_run_logger().info("The comparison in %s is noted at %s.", out, ", ".join(names))
    return names
