"""A workspace of git and DVC: its commands, and one writer at a time. No command goes through a shell."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from engine.errors import ConfigError, RunFailed
from engine.generation.lock import lock

LOCK_FILE = "dvc.lock"
TIMEOUT_SECONDS = 3600


def why_no_workspace(workspace: Path) -> str | None:
    """Why the folder is no DVC workspace; None when it is one."""
    if (workspace / ".dvc").is_dir() and (workspace / "dvc.yaml").is_file():
        return None
    return f"{workspace.absolute()} is no DVC workspace (`git init` and `dvc init` make one)"


@contextmanager
def owned(workspace: Path) -> Iterator[None]:
    """Inside the block nobody else records or brings back a version here; who comes second waits.

    Raises:
        RunFailed: DVC itself is blocked by an empty lock file.
    """
    with lock(workspace / ".dvc" / "tmp" / "de-versions.lock", f"The versions of {workspace.absolute()}", wait=True):
        _check_rwlock(workspace)
        yield


def _check_rwlock(workspace: Path) -> None:
    """An empty lock file, left by a full disk or a power cut, makes DVC refuse everything with no word of the cure."""
    path = workspace / ".dvc" / "tmp" / "rwlock"
    if path.is_file() and path.stat().st_size == 0:
        raise RunFailed(
            f"DVC's lock file {path} is empty, and DVC refuses to work with it. Make sure that no dvc command is "
            "running, delete that file, and do the same again: what was finished is kept."
        )


def dvc(workspace: Path, arguments: Sequence[str], purpose: str) -> str:
    """Run DVC's command. `purpose` completes "Could not ...".

    Raises:
        RunFailed: it failed; with what it said.
    """
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments]
    return _run(workspace, command, purpose).decode("utf-8", errors="replace")


def git(workspace: Path, arguments: Sequence[str], purpose: str) -> str:
    """Run git. Raises RunFailed as `dvc` does."""
    return _run(workspace, ["git", *arguments], purpose).decode("utf-8", errors="replace")


def file_of_tag(workspace: Path, tag: str, path: str) -> bytes | None:
    """A file as it was in a tag, by its path from the workspace; None where the tag has none."""
    where = f"refs/tags/{tag}"
    if not git(workspace, ["ls-tree", "--name-only", where, "--", path], f"look into {tag}").strip():
        return None
    return _run(workspace, ["git", "show", f"{where}:./{path}"], f"read {path} of {tag}")


def commit_files(workspace: Path, files: Sequence[str], message: str) -> None:
    """Commit these files to git and nothing else; no commit where nothing changed."""
    git(workspace, ["add", "--", *files], "add the version's files")
    if git(workspace, ["status", "--porcelain", "--untracked-files=no", "--", *files], "see what changed").strip():
        git(workspace, ["commit", "-q", "-m", message, "--", *files], "commit the version")


def locked_stages(content: bytes | str, where: str) -> dict[str, Mapping]:
    """The stages of a dvc.lock.

    Raises:
        ConfigError: it is none.
    """
    try:
        stages = (yaml.safe_load(content) or {}).get("stages") or {}
        if not all(isinstance(entry, Mapping) and isinstance(entry.get("outs", []), list) for entry in stages.values()):
            raise ValueError("its stages are not as DVC writes them")
    except (yaml.YAMLError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{where} is no dvc.lock ({' '.join(str(error).split())[:200]}). Bring it back by git."
        ) from None
    return stages


def locked_stage(workspace: Path, stage: str) -> Mapping:
    """What the workspace's dvc.lock says of a stage; nothing where it was never recorded."""
    path = workspace / LOCK_FILE
    return locked_stages(path.read_bytes(), str(path)).get(stage, {}) if path.is_file() else {}


def _run(workspace: Path, command: list[str], purpose: str) -> bytes:
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "GIT_TERMINAL_PROMPT": "0"}
    options = {"cwd": workspace, "env": environment, "stdin": subprocess.DEVNULL, "timeout": TIMEOUT_SECONDS}
    try:
        done = subprocess.run(command, capture_output=True, **options)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunFailed(f"Could not {purpose}: {error}. The run's files are kept.") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode("utf-8", errors="replace").strip()[-1500:]
        raise RunFailed(
            f"Could not {purpose} ({command[0]} ended with {done.returncode}). The run's files are kept.\n{said}"
        )
    return done.stdout
