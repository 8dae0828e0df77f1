"""The workspace: git, DVC, settings, stages."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import yaml

from engine.errors import ConfigError, RunFailed
from engine.ldm.folder import HUB_ID, INDEX
from tasks.doctor_check import OK, PROBLEM, WARNING, Check
from tasks.programs import call
from tasks.settings import open_settings
from tasks.stages import read_stage
from tasks.workspace import check_rwlock

_SECONDS = 120.0  # a large dataset that DVC has not seen is hashed first
_SHOWN = 5


def git_checks(folder: Path) -> list[Check]:
    """git itself, whether the folder is in a repository, and what is not committed there."""
    if shutil.which("git") is None:
        return [Check("git", PROBLEM, "not found", "Install git: versions are git's tags.")]
    try:
        call(["git", "rev-parse", "--show-toplevel"], folder, "ask git", seconds=30)
    except RunFailed:
        return [Check("git", WARNING, f"{folder} is in no repository", "`de init` makes a workspace around a dataset.")]
    checks = [_check_committed(folder)]
    try:
        call(["git", "var", "GIT_COMMITTER_IDENT"], folder, "see who commits", seconds=30)
    except RunFailed:
        cure = "`git config --global user.name NAME` and `git config --global user.email ADDRESS`."
        checks.append(Check("git identity", WARNING, "git does not know who commits: no version can be made", cure))
    return checks


def _check_committed(folder: Path) -> Check:
    try:
        listed = call(["git", "status", "--porcelain", "--", "."], folder, "ask git", seconds=_SECONDS)
    except RunFailed as error:
        return Check("git", WARNING, str(error))
    changed = listed.splitlines()
    if not changed:
        return Check("git", OK, "everything is committed")
    named = ", ".join(line[3:] for line in changed[:_SHOWN]) + (", ..." if len(changed) > _SHOWN else "")
    return Check(
        "git", WARNING, f"{len(changed)} not committed: {named}", "`git add` and `git commit` what belongs together."
    )


def dvc_checks(folder: Path) -> list[Check]:
    """Whether the folder is a DVC workspace, its lock, and what is out of date."""
    if not (folder / ".dvc").is_dir():
        return [Check("dvc", WARNING, f"{folder} is no DVC workspace", "`de init` makes one around a dataset.")]
    try:
        check_rwlock(folder)
    except RunFailed as error:
        found, _, cure = str(error).partition(". ")
        return [Check("dvc", PROBLEM, found, cure)]
    try:
        said = call([sys.executable, "-m", "dvc", "status", "--json"], folder, "ask DVC", seconds=_SECONDS)
        stale = sorted(json.loads(said))
    except (RunFailed, ValueError, TypeError) as error:
        return [Check("dvc", WARNING, str(error), "Another dvc command may be at work; `dvc status` says more.")]
    if not stale:
        return [Check("dvc", OK, "everything is up to date")]
    named = ", ".join(stale[:_SHOWN]) + (", ..." if len(stale) > _SHOWN else "")
    cure = "`dvc repro` runs these stages; what changed outside them: `dvc add FILE`."
    return [Check("dvc", WARNING, f"not up to date: {named}", cure)]


def settings_checks(folder: Path) -> list[Check]:
    """params.yaml and the stages of dvc.yaml, read as the commands would."""
    if not (folder / "params.yaml").is_file():
        return []
    try:
        model, settings = open_settings(folder=folder)
    except ConfigError as error:
        return [Check("params.yaml", PROBLEM, str(error), "engine/sections.py has all settings with their ranges.")]
    checks = [_check_model(model, settings.ldm.revision, settings.ldm.resolution)]
    return [*checks, _check_stages(folder)] if (folder / "dvc.yaml").is_file() else checks


def _check_model(model: str, revision: str | None, resolution: int) -> Check:
    """The diffusion model that the settings name; weights are not read."""
    at = f"diffusion model {model} at {resolution} px"
    if (Path(model) / INDEX).is_file():
        return Check("params.yaml", OK, at)
    if Path(model).exists() or not HUB_ID.fullmatch(model):
        cure = "Set ldm.id to a folder in diffusers' format, a hub id (owner/name), or world."
        return Check("params.yaml", PROBLEM, f"{at}: there is no {INDEX}", cure)
    if not revision:
        cure = "Set ldm.revision to a commit of that repository: it is not fetched without."
        return Check("params.yaml", PROBLEM, f"{at}: a hub id without ldm.revision", cure)
    return Check("params.yaml", OK, f"{at}, revision {revision}: fetched at the first use, if it is not here yet")


def _check_stages(folder: Path) -> Check:
    try:
        stages = list(yaml.safe_load((folder / "dvc.yaml").read_text(encoding="utf-8"))["stages"])
        for name in stages:
            read_stage(folder, name)
    except ConfigError as error:
        return Check(
            "dvc.yaml", WARNING, str(error), "`dvc repro` may work; a flow's run of that stage is not recorded."
        )
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        return Check(
            "dvc.yaml", PROBLEM, f"not readable ({type(error).__name__}: {reason})", "Mend it, or `git checkout` it."
        )
    return Check("dvc.yaml", OK, f"stages {', '.join(stages)}")
