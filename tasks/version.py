"""Versions: after a run outside DVC, its outputs become what DVC holds for the stage, if the run was that stage's work.

A stage's command is the plain `de` command of the step. A flow that did the same work with the same settings calls
`record`; then `dvc status` is clean and `dvc repro` has nothing to do. Inside `dvc repro` nothing is recorded.

With the name of a dataset the record is a version: a commit and a tag <name>-v<N> in git, with `versions/<tag>.json`
beside it. Any step may be cut off: the same call again ends in the same version, and equal content is one version.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from engine.config import as_dict, digest
from engine.errors import ConfigError, RunConflict
from engine.sections import Settings
from tasks.stages import Stage, read_stage
from tasks.version_entry import DATASET_NAME
from tasks.version_make import commit_stage, make_version, push_stage
from tasks.workspace import dvc, owned, why_no_workspace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recorded:
    """What became of a recording: `stage` committed to DVC (and `tag` set), or skipped and why.

    unpushed: why a tagged version is not in DVC's remote; None where it is, or where there is no remote.
    """

    stage: str
    tag: str | None = None
    skipped: str | None = None
    unpushed: str | None = None


def record(
    stage: str,
    options: Mapping[str, object],
    settings: Settings,
    workspace: Path | None = None,
    dataset: str | None = None,
) -> Recorded:
    """Commit a stage's outputs to DVC after a run that did the stage's work.

    Args:
        stage: its name in dvc.yaml.
        options: what the run was called with, by the names of the step's command-line options (data, out, images ...).
        settings: of the run.
        workspace: folder of dvc.yaml; None for the current one.
        dataset: also make it a version: see the module. It is pushed to DVC's remote where there is one; git is never
            pushed.

    Raises:
        RunConflict: the run wrote the stage's output with other options or settings than the stage's; names them.
        RunFailed: DVC or git failed.
        ConfigError: the stage's command cannot be compared, or a dataset's name makes no tag.
        DatasetError, ModelError: the output cannot be a version, for it is broken.
    """
    workspace = Path(workspace or Path())
    check_name(dataset)
    reason = why_not_recorded(stage, workspace)
    if reason:
        logger.info("Stage '%s' is not recorded: %s", stage, reason)
        return Recorded(stage, skipped=reason)
    wanted = read_stage(workspace, stage)
    if "out" in options and not wanted.same_path("out", options["out"]):
        reason = f"the run wrote {options['out']}, the stage writes {wanted.options.get('out')}"
        return Recorded(stage, skipped=reason)
    _check_same_work(wanted, options, settings)
    return _record(wanted, dataset)


def name_version(stage: str, dataset: str, workspace: Path | None = None) -> Recorded:
    """Make what `dvc repro` wrote a version: as `record`, of a stage that is up to date.

    Raises:
        ConfigError: no workspace, no such stage, or a name that makes no tag.
        RunConflict: the stage is not up to date, so what is there may not be its work.
        The others: see `record`.
    """
    workspace = Path(workspace or Path())
    check_name(dataset)
    reason = why_not_recorded(stage, workspace)
    if reason:
        raise ConfigError(f"No version was made: {reason}.")
    wanted = read_stage(workspace, stage)
    status = json.loads(dvc(workspace, ["status", "--json", stage], f"see whether stage '{stage}' is up to date"))
    if status:
        raise RunConflict(
            f"No version was made: stage '{stage}' is not up to date ({json.dumps(status.get(stage))}). "
            f"`dvc repro {stage}` makes it anew; where you changed its outputs on purpose, `dvc commit {stage}` keeps "
            "them."
        )
    return _record(wanted, dataset)


def work_digest(options: Mapping[str, object], settings: Settings, sections: Sequence[str]) -> str:
    """One number for the work of a step: its options, and the sections of the settings that it depends on."""
    values = as_dict(settings)
    return digest([{k: str(v) for k, v in sorted(options.items())}, {name: values[name] for name in sorted(sections)}])


def check_name(dataset: str | None) -> None:
    """Raises ConfigError where the name of a dataset makes no tag."""
    if dataset and not DATASET_NAME.fullmatch(dataset):
        raise ConfigError(f"A version is tagged <name>-v<N>; '{dataset}' has more than letters, digits, - and _.")


def why_not_recorded(stage: str, workspace: Path) -> str | None:
    """Why there is nothing to record here; None when there is."""
    if os.environ.get("DVC_STAGE"):
        return "DVC itself runs this step and records it"
    reason = why_no_workspace(workspace)
    if reason:
        return reason
    stages = (yaml.safe_load((workspace / "dvc.yaml").read_text(encoding="utf-8")) or {}).get("stages") or {}
    return None if stage in stages else f"dvc.yaml has no stage '{stage}'"


def _check_same_work(wanted: Stage, options: Mapping[str, object], settings: Settings) -> None:
    ran, stages = wanted.comparable(options), wanted.comparable(wanted.options)
    if work_digest(ran, settings, wanted.sections) == work_digest(stages, wanted.settings, wanted.sections):
        return
    ours, theirs = as_dict(settings), as_dict(wanted.settings)
    changed = [
        f"--{name}: {ran.get(name)} (stage: {stages.get(name)})"
        for name in sorted({*ran, *stages})
        if ran.get(name) != stages.get(name)
    ] + [
        f"{section}.{key}: {ours[section][key]} (stage: {theirs[section][key]})"
        for section in wanted.sections
        for key in ours[section]
        if ours[section][key] != theirs[section][key]
    ]
    raise RunConflict(
        f"Not recorded: this run is not what stage '{wanted.name}' of dvc.yaml does. Different: {'; '.join(changed)}. "
        "Change dvc.yaml or params.yaml to the run's values, or run into another --out folder."
    )


def _record(wanted: Stage, dataset: str | None) -> Recorded:
    with owned(wanted.workspace):
        tag = make_version(wanted, dataset) if dataset else commit_stage(wanted)
    return Recorded(wanted.name, tag, unpushed=push_stage(wanted) if tag else None)
