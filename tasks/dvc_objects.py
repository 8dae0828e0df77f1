"""DVC's cache, looked at by ourselves: DVC delivers a damaged object without a word."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.data.bounded_json import read_json
from engine.data.files import name_problem
from engine.errors import DatasetError, RunFailed
from tasks.version_entry import Version

if TYPE_CHECKING:
    from dvc.repo import Repo

MAX_LISTED = 10
FOLDER_MARK = ".dir"


@dataclass(frozen=True)
class Held:
    """Content that a version holds: its path from the workspace, its md5, and the cache's object of it.

    listing: it is the list of a folder's files, and no file of the workspace.
    """

    path: str
    md5: str
    cached: Path
    listing: bool = False

    def problem(self, at: Path) -> str | None:
        """Why the file `at` does not have this content; None where it does."""
        try:
            found = md5_of(at)
        except FileNotFoundError:
            return "is missing"
        except OSError as error:
            return f"is not readable ({error.strerror})"
        return None if found == self.md5 else f"has changed (md5 {found}, recorded {self.md5})"


def md5_of(path: Path) -> str:
    """md5 of a file, which is how DVC names content. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def cache_of(workspace: Path) -> Path:
    """The folder of DVC's objects, which several workspaces may share. Raises RunFailed."""
    with _opened(workspace) as repo:
        return Path(repo.cache.local.path)


def has_remote(workspace: Path) -> bool:
    """Whether DVC knows a remote here. Raises RunFailed."""
    with _opened(workspace) as repo:
        return bool(repo.config["remote"])


@contextmanager
def _opened(workspace: Path) -> Iterator[Repo]:
    """DVC's own library, for what needs no lock: its command takes a second for each question."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        repo = Repo(str(workspace))
    except DvcException as error:
        raise RunFailed(f"DVC cannot open {workspace.absolute()}: {' '.join(str(error).split())[:500]}") from None
    with repo:
        yield repo


def object_path(cache: Path, md5: str) -> Path:
    """Where the object of that md5 lies; of a folder the md5 ends with .dir."""
    return cache / md5[:2] / md5[2:]


def fetched(workspace: Path, version: Version, cache: Path, outputs: Sequence[Mapping]) -> list[Held]:
    """All content of a version's outputs, as in dvc.lock; what the cache lacks comes from the remote, if there is one.

    Raises:
        RunFailed: objects are missing or damaged; names them and the cure. The workspace is untouched.
    """
    reason = "there is no remote"
    if _lacking(cache, outputs) and has_remote(workspace):
        reason = _fetch(workspace, version)
    held = list(_held(cache, outputs))
    damaged = [(one, found) for one in held if one.cached.is_file() and (found := one.problem(one.cached))]
    if damaged:
        listed = "\n".join(f"  {one.path}: {one.cached} {found}" for one, found in damaged[:MAX_LISTED])
        raise RunFailed(
            f"Nothing was changed: {len(damaged)} objects of {version.name} are damaged in DVC's cache:\n{listed}\n"
            "Delete those files and give the same command again: they are fetched from DVC's remote. Without a remote "
            f"they are lost: `git checkout {version.name}` and `dvc repro {version.stage}` make the version anew."
        )
    lacking = _lacking(cache, outputs)
    if lacking:
        raise RunFailed(
            f"Nothing was changed: {len(lacking)} objects of {version.name} are not in DVC's cache ({reason}), the "
            f"first: {lacking[0].path} ({lacking[0].cached}). Where the remote is out of reach, put that right and "
            "give the same command again. Where another copy of this workspace has them, push them from there to a "
            f"remote that both know. Else `git checkout {version.name}` and `dvc repro {version.stage}` make the "
            "version anew."
        )
    return held


def _lacking(cache: Path, outputs: Sequence[Mapping]) -> list[Held]:
    return [held for held in _held(cache, outputs) if not held.cached.is_file()]


def _held(cache: Path, outputs: Sequence[Mapping]) -> Iterator[Held]:
    """The outputs' own objects; and the files of each folder whose listing is there and whole."""
    for output in outputs:
        md5 = output["md5"]
        folder = md5.endswith(FOLDER_MARK)
        own = Held(output["path"], md5.removesuffix(FOLDER_MARK), object_path(cache, md5), folder)
        yield own
        if folder and not own.problem(own.cached):
            yield from _files(cache, own)


def _files(cache: Path, listing: Held) -> Iterator[Held]:
    entries = read_json(listing.cached)
    for entry in entries if isinstance(entries, list) else [None]:
        name, md5 = (entry.get("relpath"), entry.get("md5")) if isinstance(entry, dict) else (None, None)
        if name_problem(name) or not isinstance(md5, str):
            raise DatasetError(f"{listing.cached} is no list of files as DVC writes it: {str(entry)[:200]}.")
        yield Held(f"{listing.path}/{name}", md5, object_path(cache, md5))


def _fetch(workspace: Path, version: Version) -> str:
    """As `dvc fetch` of that tag alone, which the command has no words for (--all-tags fetches every version).

    Returns:
        What became of it, in words: some of the objects may have come although it failed.
    """
    with _silenced("dvc", "dvc_data", "dvc_objects"):
        try:
            with _opened(workspace) as repo:
                # Else DVC takes the remotes that the tag's own configuration names, and those may have moved since.
                remotes = {"core": dict(repo.config["core"]), "remote": dict(repo.config["remote"])}
                repo.fetch(targets=[version.stage], revs=[version.name], workspace=False, config=remotes)
        except Exception as error:  # every kind of remote has its own types
            return f"fetching failed: {' '.join(str(error).split())[:500] or type(error).__name__}"
    return "nor in the remote"


@contextmanager
def _silenced(*names: str) -> Iterator[None]:
    """Inside the block these libraries log nothing: they would show tracebacks of what is told in one message."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
