"""Which versions there are: the tags of git with what their files tell."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from engine.errors import ConfigError, DatasetError, RunFailed
from tasks.version_entry import TAG, Version, parse_version, path_of
from tasks.workspace import file_of_tag, git

log = logging.getLogger(__name__)
_FORMAT = "%(refname:strip=2)%09%(creatordate:iso-strict)%09%(contents:subject)"
_SUBJECT = re.compile(r".*: outputs of stage (.+)")


def list_versions(workspace: Path | None = None) -> list[Version]:
    """All versions, by dataset and number. What was learned since the tag was made is taken from the working tree.

    Raises:
        ConfigError: the folder is in no git repository.
        RunFailed: git failed.
    """
    workspace = Path(workspace or Path())
    if not is_in_git(workspace):
        raise ConfigError(f"{workspace.absolute()} is in no git repository, so it holds no versions. Is it the folder?")
    versions = []
    for line in git(workspace, ["for-each-ref", f"--format={_FORMAT}", "refs/tags"], "list the tags").splitlines():
        name, date, subject = (line.split("\t", 2) + ["", ""])[:3]
        if TAG.fullmatch(name):
            found = _version(workspace, name, subject)
            versions += [replace(found, date=date)] if found else []
    return sorted(versions, key=lambda version: (version.dataset, version.number))


def find_version(workspace: Path, name: str) -> Version:
    """The version of that name.

    Raises:
        ConfigError: there is none; lists what there is. And as `list_versions`.
    """
    versions = list_versions(workspace)
    found = next((version for version in versions if version.name == name), None)
    if found is None:
        there = ", ".join(version.name for version in versions) or "none yet: a recorded run with a name makes one"
        raise ConfigError(f"There is no version '{name}'. Versions: {there}.")
    return found


def tag_of(content: Mapping[str, str | None], workspace: Path | None = None) -> str | None:
    """The version whose content has all these digests, the latest of several; None where there is none, or no git."""
    workspace = Path(workspace or Path())
    try:
        versions = list_versions(workspace) if is_in_git(workspace) else []
    except RunFailed as error:
        log.warning("Which version a dataset is, is not known: %s", error)
        return None
    same = [v for v in versions if content and all(v.content.get(key, "") == value for key, value in content.items())]
    return max(same, key=lambda version: version.date).name if same else None


def is_in_git(workspace: Path) -> bool:
    """Whether the folder is in a git repository, without asking git (which may not be installed)."""
    return any((folder / ".git").exists() for folder in (workspace.absolute(), *workspace.absolute().parents))


def _version(workspace: Path, name: str, subject: str) -> Version | None:
    """From the working tree's file, else from the tag's; None for a tag that is no version."""
    there = workspace / path_of(name)
    note = ""
    for read in (lambda: there.read_bytes() if there.is_file() else None, lambda: _of_tag(workspace, name)):
        try:
            content = read()
            if content is not None:
                return replace(parse_version(content, name), note=note)
        except (DatasetError, OSError) as error:
            note = str(error)
    stage = _SUBJECT.fullmatch(subject)
    if stage is None and not note:
        return None
    return Version(name, stage[1] if stage else "", "unknown", 0, 0, note=note or "its tag tells only the stage")


def _of_tag(workspace: Path, name: str) -> bytes | None:
    return file_of_tag(workspace, name, path_of(name))
