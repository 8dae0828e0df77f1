"""Prefect task: the comparison of detectors trained with and without generated data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prefect import task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE

from engine.sections import LdmSettings, Settings
from tasks.retry import RETRIED
from tasks.scores import Comparison, percent, summarise, verdict_line, write_plot_data
from tasks.version_list import tag_of


@task(name="compare", cache_policy=NO_CACHE, **RETRIED)
def compare_arms(
    real: Path,
    generated: Path,
    out: Path,
    settings: Settings,
    seeds: int | None = None,
    further: Mapping[str, Path] | None = None,
    ldm: LdmSettings | None = None,
) -> Comparison:
    """Train and score every arm; trainings that are on disk are not done again."""
    from engine.evaluation.compare import compare

    shown = create_progress_artifact(0.0, "comparison-progress", "detectors trained")

    def show(done: int, total: int) -> None:
        update_progress_artifact(shown, 100 * done / total)

    results = compare(Path(real), Path(generated), Path(out), settings, seeds, show, further, ldm, version_of=tag_of)
    write_plot_data(results, Path(out))
    comparison = summarise(results, Path(out))
    rows = [
        {"arm": name, "mAP of each seed": percent(arm["map"]), "AP50 of each seed": percent(arm["map50"])}
        for name, arm in results["arms"].items()
    ]
    create_table_artifact(rows, "comparison", "The same detector, steps and seeds on the untouched test split")
    create_markdown_artifact(f"{verdict_line(comparison)}\n\nReport: `{comparison.report}`", "report")
    return comparison
