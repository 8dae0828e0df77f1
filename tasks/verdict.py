"""What becomes known of a version after its tag was made: comparisons on it, and whether it was promoted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from engine.errors import ConfigError, DatasetError
from engine.evaluation.results import read_results
from tasks.version_entry import VERDICTS, Version, write_version
from tasks.version_facts import compared_content, comparison_metrics
from tasks.version_list import find_version, is_in_git, list_versions
from tasks.workspace import commit_files, owned, why_no_workspace


def set_verdict(
    name: str, verdict: str, reason: str, workspace: Path | None = None, comparison: Path | None = None
) -> Version:
    """Write a verdict into the version's file, and commit that file.

    Args:
        verdict: candidate, promoted or rejected.
        reason: why, in words; a verdict without one is refused.
        comparison: folder of a comparison on this very dataset, whose result is noted too.

    Raises:
        ConfigError: no workspace, no such version, an unknown verdict, or no reason.
        DatasetError: the comparison is unreadable, or was made on another dataset.
    """
    workspace = _workspace(workspace)
    reason = " ".join(reason.split())
    if verdict not in VERDICTS:
        raise ConfigError(f"The verdict on {name} must be {', '.join(VERDICTS)}, not '{verdict}'.")
    if not reason:
        raise ConfigError(f"A verdict on {name} needs a reason: say in a sentence why it is {verdict}.")
    with owned(workspace):
        version = replace(find_version(workspace, name), verdict=verdict, reason=reason)
        if comparison is not None:
            results = read_results(comparison / "results.json")
            if not version.content or compared_content(results) != version.content:
                raise DatasetError(
                    f"{comparison / 'results.json'} is not of {name}: it was made on a dataset with other digests, or "
                    "by an older version that noted none. Compare with that version, and give its folder."
                )
            version = _with(version, results)
        _write(workspace, [version], f"{name}: {verdict}")
    return version


def note_comparison(out: Path, workspace: Path | None = None) -> list[str]:
    """Note a comparison in the files of the versions that it was made on, and commit those. Returns their names.

    Raises:
        DatasetError: out/results.json is unreadable. RunFailed: git failed.
    """
    workspace = Path(workspace or Path())
    if why_no_workspace(workspace) or not is_in_git(workspace):
        return []
    results = read_results(out / "results.json")
    content = compared_content(results)
    with owned(workspace):
        compared = [v for v in list_versions(workspace) if content and v.content == content]
        changed = [v for v in (_with(version, results) for version in compared) if v not in compared]
        if changed:
            _write(workspace, changed, f"{', '.join(v.name for v in changed)}: compared")
    return [version.name for version in compared]


def _with(version: Version, results: dict) -> Version:
    return replace(version, metrics={**version.metrics, "comparison": comparison_metrics(results)})


def _write(workspace: Path, versions: list[Version], message: str) -> None:
    commit_files(workspace, [write_version(workspace, version) for version in versions], message)


def _workspace(workspace: Path | None) -> Path:
    workspace = Path(workspace or Path())
    reason = why_no_workspace(workspace)
    if reason:
        raise ConfigError(f"No verdict was written: {reason}.")
    return workspace
