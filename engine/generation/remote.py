"""A store under a URL, where nothing can be renamed and nothing locked.

Each attempt at a shard uploads into a folder of its own, `shards/00012-<token>/`. The commit is one object,
`shards/00012.json`: shard.json and that token. It appears whole or not at all, the last writer wins, and whoever reads
it finds the files of one attempt, whose hashes it holds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from engine.generation.durable import sha256_of, to_json, write_durably
from engine.generation.lease import dead_among, lease
from engine.generation.objects import Objects, open_objects, side_by_side
from engine.generation.scratch import process_folder, scratch_folder
from engine.generation.store import BadShard, NoShard

log = logging.getLogger(__name__)
LEASES = "leases"
_ATTEMPT = re.compile(r"(\d{5,})-([0-9a-f]{16})")
_COMMIT = re.compile(r"(\d{5,})\.json")


@dataclass(frozen=True)
class RemoteFiles:
    """The objects of one attempt, below `folder`."""

    objects: Objects
    folder: str

    def read(self, name: str) -> bytes:
        return self.objects.get(f"{self.folder}/{name}")

    def sizes(self) -> dict[str, int]:
        return self.objects.sizes(self.folder)

    def hashes(self, names: list[str]) -> Iterator[tuple[str, str]]:
        yield from side_by_side(
            self.objects, lambda name: (name, hashlib.sha256(self.read(name)).hexdigest()), list(names)
        )

    def place(self, files: Mapping[str, Mapping], out: Path) -> None:
        def fetch(name: str) -> None:
            self._fetch(name, files[name], out / name)

        side_by_side(self.objects, fetch, list(files))

    def is_placed(self, name: str, target: Path) -> bool:
        return False  # it is a copy, to be read and compared

    def _fetch(self, name: str, expected: Mapping, target: Path) -> None:
        if _is(target, expected):
            return
        try:
            content = self.read(name)
        except FileNotFoundError:
            raise BadShard(f"{name} is missing") from None
        if hashlib.sha256(content).hexdigest() != expected["sha256"]:
            raise BadShard(f"{name} has changed (sha256 differs)")
        part = target.with_name(f".{target.name}.part")
        write_durably(part, content)
        os.replace(part, target)


class RemoteStore:
    """Plan and shards under a URL. Work is drawn on this machine and uploaded when it is whole."""

    def __init__(self, url: str):
        self.location = url.rstrip("/")
        self._objects = open_objects(self.location)
        self.ahead = self._objects.at_once if self._objects.at_once > 1 else 0

    def read_bytes(self, name: str) -> bytes:
        return self._objects.get(name)

    def write_bytes(self, name: str, chunks: Iterable[bytes]) -> str:
        content = b"".join(chunks)
        self._objects.put(name, content)
        return hashlib.sha256(content).hexdigest()

    def local_copy(self, name: str) -> Path:
        content = self.read_bytes(name)
        path = process_folder() / f"{hashlib.sha256(content).hexdigest()[:16]}-{name}"
        if not path.exists():
            part = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
            write_durably(part, content)
            os.replace(part, path)
        return path

    def names(self) -> list[str]:
        return [
            name for name in self._objects.names("") if name[0] != "." and not name.endswith(".part") and name != LEASES
        ]

    def own_plan(self) -> AbstractContextManager:
        return lease(self._objects, f"{LEASES}/plan.json", f"The plan of {self.location}", wait=True)

    def own(self, shard: int) -> AbstractContextManager:
        return lease(self._objects, _lease_of(shard), f"Shard {shard} of {self.location}")

    @contextmanager
    def attempt(self, shard: int) -> Iterator[Path]:
        with scratch_folder() as scratch:
            work = scratch / "shard"
            yield work
            self._commit(work, shard, secrets.token_hex(8))

    def read_commit(self, shard: int) -> bytes:
        try:
            return self._objects.get(_commit_of(shard))
        except FileNotFoundError:
            raise NoShard("not there") from None

    def files(self, shard: int, commit: Mapping) -> RemoteFiles:
        folder = f"{shard:05d}-{commit.get('attempt')}"
        if not _ATTEMPT.fullmatch(folder):  # no path is ever taken from the object
            raise BadShard("shard.json names no attempt")
        return RemoteFiles(self._objects, f"shards/{folder}")

    def withdraw(self, shard: int) -> None:
        self._objects.remove([_commit_of(shard)])

    def remove_leftovers(self) -> None:
        garbage, dead = self._garbage()
        self._objects.remove(dead)
        for folder in garbage:
            names = self._objects.sizes(folder)
            self._objects.remove([f"{folder}/{name}" for name in sorted(names)])

    def _commit(self, work: Path, shard: int, token: str) -> None:
        """Upload, look whether all is there, and say so in one object."""
        summary = json.loads((work / "shard.json").read_bytes())
        folder, files = f"shards/{shard:05d}-{token}", summary["files"]
        try:
            side_by_side(
                self._objects,
                lambda name: self._objects.put(f"{folder}/{name}", (work / name).read_bytes()),
                list(files),
            )
            _check_arrival(files, self._objects.sizes(folder), folder)
        except BaseException:
            self._forget(folder, files)
            raise
        # Whether it arrived is not known where this raises, so its files stay for now.
        self._objects.put(_commit_of(shard), to_json(summary | {"attempt": token}) + b"\n")

    def _forget(self, folder: str, files: Iterable[str]) -> None:
        try:
            self._objects.remove([f"{folder}/{name}" for name in files])
        except Exception as error:  # the merge removes them
            log.warning("%s of %s could not be removed: %s", folder, self.location, error)

    def _garbage(self) -> tuple[list[str], list[str]]:
        """Attempts that no commit names and no live owner fills, and leases whose owner is dead.

        Attempts are listed first, then the leases, then the commits: what is committed meanwhile is seen to be.
        """
        attempts, committed = defaultdict(list), set()
        for name in self._objects.names("shards"):
            if match := _ATTEMPT.fullmatch(name):
                attempts[int(match[1])].append(f"shards/{name}")
            elif match := _COMMIT.fullmatch(name):
                committed.add(int(match[1]))
        leases = [f"{LEASES}/{name}" for name in self._objects.names(LEASES)]
        dead = dead_among(self._objects, leases)
        garbage = []
        for shard, found in attempts.items():
            is_live = _lease_of(shard) in leases and _lease_of(shard) not in dead
            if not is_live and (len(found) > 1 or shard not in committed):
                named = self._named(shard)
                garbage += [folder for folder in found if folder != named]
        return garbage, sorted(dead)

    def _named(self, shard: int) -> str | None:
        """The attempt that a shard's commit names."""
        try:
            return self.files(shard, json.loads(self.read_commit(shard))).folder
        except (BadShard, ValueError, AttributeError, RecursionError):
            return None


def _commit_of(shard: int) -> str:
    return f"shards/{shard:05d}.json"


def _lease_of(shard: int) -> str:
    return f"{LEASES}/{shard:05d}.json"


def _check_arrival(files: Mapping[str, Mapping], sizes: Mapping[str, int], folder: str) -> None:
    for name, expected in files.items():
        if sizes.get(name) != expected["size"]:
            raise OSError(f"{folder}/{name} has {sizes.get(name)} bytes in the store, not {expected['size']}")


def _is(path: Path, expected: Mapping) -> bool:
    """Whether a file of an earlier merge is the wanted one."""
    try:
        return path.stat().st_size == expected["size"] and sha256_of(path) == expected["sha256"]
    except FileNotFoundError:
        return False
