"""A workspace of git and DVC: its commands, and one writer at a time. No command goes through a shell."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from engine.errors import ConfigError, RunFailed
from engine.generation.lock import lock
from tasks.programs import call, output_of

LOCK_FILE = "dvc.lock"
_BUSY, _ATTEMPTS, _PAUSE_SECONDS = "it is being blocked by", 30, 2.0


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
        check_rwlock(workspace)
        yield


def check_rwlock(workspace: Path) -> None:
    """An empty lock file, left by a full disk or a power cut, makes DVC refuse everything with no word of the cure.

    Raises:
        RunFailed: it is empty; says what to do.
    """
    path = workspace / ".dvc" / "tmp" / "rwlock"
    if path.is_file() and path.stat().st_size == 0:
        raise RunFailed(
            f"DVC's lock file {path} is empty, and DVC refuses to work with it. Make sure that no dvc command is "
            "running, delete that file, and do the same again: what was finished is kept."
        )


def dvc(workspace: Path, arguments: Sequence[str], purpose: str) -> str:
    """Run DVC's command. `purpose` completes "Could not ...".

    Of its two locks DVC waits for one only. While another command holds the other, or one that was killed is not yet
    gone from the process table, this tries again for a minute.

    Raises:
        RunFailed: it failed; with what it said.
    """
    for left in reversed(range(_ATTEMPTS)):
        try:
            return call([sys.executable, "-m", "dvc", "--wait-for-lock", *arguments], workspace, purpose)
        except RunFailed as error:
            if _BUSY not in str(error) or not left:
                raise
        time.sleep(_PAUSE_SECONDS)
    raise AssertionError("unreachable: the last attempt returns or raises")


def git(workspace: Path, arguments: Sequence[str], purpose: str) -> str:
    """Run git. Raises RunFailed as `dvc` does."""
    return call(["git", *arguments], workspace, purpose)


def file_of_tag(workspace: Path, tag: str, path: str) -> bytes | None:
    """A file as it was in a tag, by its path from the workspace; None where the tag has none."""
    where = f"refs/tags/{tag}"
    if not git(workspace, ["ls-tree", "--name-only", where, "--", path], f"look into {tag}").strip():
        return None
    return output_of(["git", "show", f"{where}:./{path}"], workspace, f"read {path} of {tag}")


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
