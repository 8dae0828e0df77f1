"""What would be lost if a version were brought back over what lies in the workspace."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from engine.data.files import write_atomically
from engine.errors import RunConflict, RunFailed
from tasks.dvc_objects import cache_of, md5_of, object_path
from tasks.version_entry import Version
from tasks.workspace import LOCK_FILE, dvc, git

_BEGUN = Path(".dvc") / "tmp" / "de-checkout"


def check_nothing_is_lost(workspace: Path, version: Version, by_dvc: Sequence[str], by_git: Sequence[str]) -> None:
    """Refuse to overwrite outputs that are not as dvc.lock (or git, for those that git keeps) says.

    A checkout that was cut off leaves outputs that are neither the old nor the new version: they may be overwritten
    where every file of them is in DVC's cache. Outputs that are as recorded, but that the cache lost, are put into it
    again first. Of what git keeps, all may be overwritten whose content git has, in whatever commit.

    Raises:
        RunConflict: names the outputs, and how to keep or give up what is there.
    """
    states = status_of(workspace, version.stage, "changed outs")
    if "not in cache" in states.values():
        _cache_again(workspace, version.stage)
        states = {path: state for path, state in states.items() if state != "not in cache"}
    changed = [f"{path} ({state})" for path, state in states.items() if state != "deleted" and path not in by_git]
    if changed and (workspace / _BEGUN).is_file() and _all_cached(workspace, by_dvc):
        changed = []
    changed += [f"{path} (not committed to git)" for path in _files(workspace, by_git) if not _in_git(workspace, path)]
    if changed:
        raise RunConflict(
            f"Nothing was changed: {', '.join(changed)} would be overwritten, and what is there is not kept by DVC. "
            f"Record it first (`dvc commit {version.stage}` and `de record {version.stage} NAME`), or give it up with "
            f"`de checkout {version.name} --force`."
        )


@contextmanager
def marked_as_begun(workspace: Path) -> Iterator[None]:
    """A mark that stays for the next checkout if this one fails or is cut off inside the block."""
    mark = workspace / _BEGUN
    mark.touch()
    yield
    mark.unlink()


def status_of(workspace: Path, stage: str, part: str) -> dict[str, str]:
    """State by path of "changed outs" or "changed deps", as DVC sees them."""
    said = json.loads(dvc(workspace, ["status", "--json", stage], f"see what changed in stage '{stage}'"))
    states: dict[str, str] = {}
    for change in said.get(stage, ()):
        if isinstance(change, dict):  # beside "changed command", a word
            states |= change.get(part, {})
    return states


def _cache_again(workspace: Path, stage: str) -> None:
    """Give the cache back what only the workspace holds by now; dvc.lock stays, for the stage's parents may differ."""
    path = workspace / LOCK_FILE
    locked = path.read_bytes()
    dvc(workspace, ["commit", "-f", stage], f"put the outputs of stage '{stage}' into DVC's cache again")
    write_atomically(path, locked)


def _all_cached(workspace: Path, paths: Sequence[str]) -> bool:
    cache = cache_of(workspace)
    return all(object_path(cache, md5_of(workspace / path)).is_file() for path in _files(workspace, paths))


def _files(workspace: Path, paths: Sequence[str]) -> Iterator[str]:
    """The files of outputs that are there."""
    for root in (workspace / path for path in paths):
        for file in [root] if root.is_file() else root.rglob("*"):
            if file.is_file():
                yield str(file.relative_to(workspace))


def _in_git(workspace: Path, path: str) -> bool:
    """Whether git holds the content of a file as it is now."""
    name = git(workspace, ["hash-object", "--", path], f"read {path}").strip()
    try:
        git(workspace, ["cat-file", "-e", name], f"look for {path} in git")
    except RunFailed:
        return False
    return True
