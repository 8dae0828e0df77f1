"""What would be lost if a version were brought back over what lies in the workspace."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from engine.errors import RunConflict
from tasks.dvc_objects import cache_of, md5_of, object_path
from tasks.version_entry import Version
from tasks.workspace import dvc, git

_BEGUN = Path(".dvc") / "tmp" / "de-checkout"


def check_nothing_is_lost(workspace: Path, version: Version, by_dvc: Sequence[str], by_git: Sequence[str]) -> None:
    """Refuse to overwrite outputs that are not as dvc.lock (or git, for those that git keeps) says.

    A checkout that was cut off leaves outputs that are neither the old nor the new version. They may be overwritten
    where every file of them is in DVC's cache.

    Raises:
        RunConflict: names the outputs, and how to keep or give up what is there.
    """
    states = status_of(workspace, version.stage, "changed outs")
    changed = [f"{path} ({state})" for path, state in states.items() if state != "deleted" and path not in by_git]
    if changed and (workspace / _BEGUN).is_file() and _all_cached(workspace, by_dvc):
        changed = []
    tracked = [path for path in by_git if (workspace / path).exists()]
    if tracked:
        lines = git(workspace, ["status", "--porcelain", "--", *tracked], "see what changed").splitlines()
        changed += [f"{line[3:]} (not committed to git)" for line in lines]
    if changed:
        raise RunConflict(
            f"Nothing was changed: {', '.join(changed)} would be overwritten, and what is there is in no version. "
            f"Record it first (`dvc commit {version.stage}` and `de record {version.stage} NAME`), or give it up with "
            f"`de checkout {version.name} --force`."
        )


@contextmanager
def marked_as_begun(workspace: Path) -> Iterator[None]:
    """A mark for the next checkout, if this one is cut off inside the block."""
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


def _all_cached(workspace: Path, paths: Sequence[str]) -> bool:
    cache = cache_of(workspace)
    roots = [workspace / path for path in paths]
    files = [file for root in roots for file in ([root] if root.is_file() else root.rglob("*")) if file.is_file()]
    return all(object_path(cache, md5_of(file)).is_file() for file in files)
