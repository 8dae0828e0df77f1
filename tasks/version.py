"""Versions: after a run outside DVC, its outputs become what DVC holds for the stage, if the run was that stage's work.

A stage's command is the plain `de` command of the step. A flow that did the same work with the same settings calls
`record`; then `dvc status` is clean and `dvc repro` has nothing to do. Inside `dvc repro` nothing is recorded.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from engine.config import Settings, as_dict, digest
from engine.errors import ConfigError, RunConflict, RunFailed
from tasks.stages import Stage, read_stage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recorded:
    """What became of a recording: `stage` committed to DVC (and `tag` set), or skipped and why."""

    stage: str
    tag: str | None = None
    skipped: str | None = None


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
        dataset: also commit to git and tag `<dataset>-v<N>`, N one above the last.

    Raises:
        RunConflict: the run wrote the stage's output with other options or settings than the stage's; names them.
        RunFailed: DVC or git failed.
        ConfigError: the stage's command cannot be compared, or a dataset's name makes no tag.
    """
    workspace = Path(workspace or Path())
    if dataset and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", dataset):
        raise ConfigError(f"A version is tagged <name>-v<N>; '{dataset}' has more than letters, digits, - and _.")
    reason = _why_not(stage, workspace)
    if reason:
        logger.info("Stage '%s' is not recorded: %s", stage, reason)
        return Recorded(stage, skipped=reason)
    wanted = read_stage(workspace, stage)
    if "out" in options and not wanted.same_path("out", options["out"]):
        reason = f"the run wrote {options['out']}, the stage writes {wanted.options.get('out')}"
        return Recorded(stage, skipped=reason)
    _check_same_work(wanted, options, settings)
    check_lock_file(workspace)
    _run(workspace, [sys.executable, "-m", "dvc", "--wait-for-lock", "commit", "-f", stage], f"commit stage '{stage}'")
    tag = _tag(workspace, wanted, dataset) if dataset else None
    return Recorded(stage, tag)


def work_digest(options: Mapping[str, object], settings: Settings, sections: Sequence[str]) -> str:
    """One number for the work of a step: its options, and the sections of the settings that it depends on."""
    values = as_dict(settings)
    return digest([{k: str(v) for k, v in sorted(options.items())}, {name: values[name] for name in sorted(sections)}])


def _why_not(stage: str, workspace: Path) -> str | None:
    """Why there is nothing to record here; None when there is."""
    if os.environ.get("DVC_STAGE"):
        return "DVC itself runs this step and records it"
    if not (workspace / ".dvc").is_dir() or not (workspace / "dvc.yaml").is_file():
        return f"{workspace.absolute()} is no DVC workspace (`git init` and `dvc init` make one)"
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


def check_lock_file(workspace: Path) -> None:
    """An empty lock file, left by a full disk or a power cut, makes DVC refuse everything with no word of the cure.

    Raises:
        RunFailed: it is empty; says what to do.
    """
    path = workspace / ".dvc" / "tmp" / "rwlock"
    if path.is_file() and path.stat().st_size == 0:
        raise RunFailed(
            f"DVC's lock file {path} is empty, and DVC refuses to work with it. Make sure that no dvc command is "
            "running, delete that file, and start the run again: what it finished is kept."
        )


def _tag(workspace: Path, wanted: Stage, dataset: str) -> str:
    """Commit what pins this version to git, and tag it."""
    existing = _git(workspace, ["tag", "--list", f"{dataset}-v*"], "list tags").split()
    numbers = [int(m[1]) for name in existing if (m := re.fullmatch(re.escape(dataset) + r"-v(\d+)", name))]
    tag = f"{dataset}-v{max(numbers, default=0) + 1}"
    names = ["dvc.yaml", "dvc.lock", "params.yaml", *wanted.git_files]
    files = [name for name in names if (workspace / name).exists()]
    # DVC hides its outputs from git in .gitignore files beside them.
    files += _git(workspace, ["ls-files", "-mo", "--exclude-standard", "--", "*.gitignore"], "list files").splitlines()
    _git(workspace, ["add", "--", *files], "add the version's files")
    if _git(workspace, ["status", "--porcelain", "--untracked-files=no", "--", *files], "see what changed").strip():
        _git(workspace, ["commit", "-q", "-m", f"{tag}: stage {wanted.name}", "--", *files], "commit the version")
    _git(workspace, ["tag", "-a", tag, "-m", f"{tag}: outputs of stage {wanted.name}"], "tag the version")
    return tag


def _git(workspace: Path, arguments: list[str], purpose: str) -> str:
    return _run(workspace, ["git", *arguments], purpose)


def _run(workspace: Path, command: list[str], purpose: str) -> str:
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(
            command,
            cwd=workspace,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=3600,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunFailed(f"Could not {purpose}: {error}. The run's files are kept.") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-1500:]
        raise RunFailed(
            f"Could not {purpose} ({command[0]} ended with {done.returncode}). The run's files are kept.\n{said}"
        )
    return done.stdout
