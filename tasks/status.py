"""The state of a workspace on one page: what lies in it, its versions, what runs now. Reads files only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ConfigError, DatasetError, RunFailed
from tasks.flow_runs import FlowRuns, live_flow_runs
from tasks.inventory import Found, disk_bytes, take_stock
from tasks.night_file import Night, Nights
from tasks.programs import call

NIGHTS = "nights"
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
        found: its folders of a known kind, without those of the nights.
        nights: in nights/, by number.
        nights_bytes: what they take on the disk.
        nights_problem: why they cannot be read.
        versions: by name and number.
        flows: of the Prefect server.
    """

    folder: str
    git: bool
    dvc: bool
    cache_bytes: int | None
    found: tuple[Found, ...]
    nights: tuple[Night, ...]
    nights_bytes: int
    nights_problem: str | None
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
    nights, problem = _nights_of(folder / NIGHTS)
    return Status(
        folder=str(folder),
        git=git,
        dvc=(folder / ".dvc").is_dir(),
        cache_bytes=disk_bytes(cache) if cache.is_dir() else None,
        found=tuple(take_stock(folder, folder / NIGHTS if nights or problem else None)),
        nights=nights,
        nights_bytes=disk_bytes(folder / NIGHTS),
        nights_problem=problem,
        versions=versions_of(folder) if git else (),
        flows=live_flow_runs(folder),
    )


def _nights_of(folder: Path) -> tuple[tuple[Night, ...], str | None]:
    """The nights, or why they cannot be read."""
    try:
        return tuple(Nights(folder).all()), None
    except DatasetError as error:
        return (), str(error)


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
