"""The state of a workspace on one page: what lies in it, its versions, what runs now. Reads files only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ConfigError, RunFailed
from tasks.flow_runs import FlowRuns, live_flow_runs
from tasks.inventory import Found, disk_bytes, take_stock
from tasks.programs import call

_VERSION = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]*)-v(\d+)")


@dataclass(frozen=True)
class Version:
    """A git tag `<name>-v<N>`, and the day on which it was set (YYYY-MM-DD)."""

    tag: str
    day: str


@dataclass(frozen=True)
class Status:
    """A workspace.

    Attributes:
        folder: absolute.
        git, dvc: whether it is a git repository, and a DVC workspace.
        cache_bytes: what DVC's cache takes; None where there is none.
        found: its folders of a known kind.
        versions: by name and number.
        flows: of the Prefect server.
    """

    folder: str
    git: bool
    dvc: bool
    cache_bytes: int | None
    found: tuple[Found, ...]
    versions: tuple[Version, ...]
    flows: FlowRuns


def read_status(folder: Path) -> Status:
    """Look at a workspace.

    Raises:
        ConfigError: there is no such folder.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        raise ConfigError(f"There is no folder {folder}. Name a workspace, or make one with `de init`.")
    git, cache = (folder / ".git").exists(), folder / ".dvc" / "cache"
    return Status(
        folder=str(folder),
        git=git,
        dvc=(folder / ".dvc").is_dir(),
        cache_bytes=disk_bytes(cache) if cache.is_dir() else None,
        found=tuple(take_stock(folder)),
        versions=versions_of(folder) if git else (),
        flows=live_flow_runs(),
    )


def versions_of(folder: Path) -> tuple[Version, ...]:
    """The versions that git holds; none where git is missing or does not answer."""
    command = ["git", "for-each-ref", "--format=%(refname:short) %(creatordate:short)", "refs/tags"]
    try:
        lines = call(command, folder, "list tags", seconds=30).splitlines()
    except RunFailed:
        return ()
    found = []
    for line in lines:
        tag, _, day = line.partition(" ")
        if match := _VERSION.fullmatch(tag):
            found.append((match[1], int(match[2]), Version(tag, day)))
    return tuple(version for _, _, version in sorted(found, key=lambda entry: entry[:2]))
