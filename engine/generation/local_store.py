"""A store in a folder of this machine: locks of the kernel, writes forced to the disk, and one rename as the commit."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from engine.generation.cleaning import to_the_end
from engine.generation.durable import remove_folder, replace_durably, sha256_of, sync_folder
from engine.generation.lock import Busy, lock
from engine.generation.store import NoShard

_LEFT = re.compile(r"\.(?:tmp|lock)-(\d{5,9})(?!\d)")


@dataclass(frozen=True)
class LocalFiles:
    """The folder of a committed shard."""

    folder: Path

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def sizes(self) -> dict[str, int]:
        found = {}
        for prefix in ("", "images/"):
            try:
                with os.scandir(self.folder / prefix) as entries:
                    for entry in entries:
                        if entry.is_file():
                            found[prefix + entry.name] = entry.stat().st_size
            except FileNotFoundError:
                continue
        return found

    def hashes(self, names: list[str]) -> Iterator[tuple[str, str]]:
        for name in names:
            yield name, sha256_of(self.folder / name)

    def place(self, files: Mapping[str, Mapping], out: Path) -> None:
        source, target = f"{self.folder}{os.sep}", f"{out}{os.sep}"  # as text: a Path costs more than the link
        for name in files:
            _link(source + name, target + name)

    def is_placed(self, name: str, target: Path) -> bool:
        return os.path.samefile(target, self.folder / name)


class LocalStore:
    """A folder on this machine's disks. Every write is forced to the disk; a commit is one rename."""

    ahead = 0

    def __init__(self, folder: Path):
        self.location = folder

    def read_bytes(self, name: str) -> bytes:
        return (self.location / name).read_bytes()

    def write_bytes(self, name: str, chunks: Iterable[bytes]) -> str:
        self.location.mkdir(parents=True, exist_ok=True)
        return replace_durably(self.location / name, chunks)

    def local_copy(self, name: str) -> Path:
        return self.location / name

    def names(self) -> list[str]:
        if not self.location.is_dir():
            return []
        return sorted(name for name in os.listdir(self.location) if not name.startswith("."))

    def own_plan(self) -> AbstractContextManager:
        return lock(self.location / ".plan.lock", f"The plan of {self.location}", wait=True)

    def own(self, shard: int) -> AbstractContextManager:
        return lock(self._shards / f".lock-{shard:05d}", f"Shard {shard} of {self.location}")

    @contextmanager
    def attempt(self, shard: int) -> Iterator[Path]:
        self._remove_work(shard)
        work = self._shards / f".tmp-{shard:05d}-{secrets.token_hex(4)}"
        try:
            yield work
            self._commit(work, self._folder(shard))
        except BaseException:
            to_the_end(lambda: remove_folder(work))
            raise

    def read_commit(self, shard: int) -> bytes:
        folder = self._folder(shard)
        try:
            return (folder / "shard.json").read_bytes()
        except FileNotFoundError:
            if folder.is_dir():
                raise
            raise NoShard("not there") from None

    def files(self, shard: int, commit: Mapping) -> LocalFiles:
        return LocalFiles(self._folder(shard))

    def withdraw(self, shard: int) -> None:
        gone = self._shards / f".tmp-{shard:05d}-withdrawn"
        remove_folder(gone)
        os.rename(self._folder(shard), gone)
        sync_folder(self._shards)
        remove_folder(gone)

    def remove_leftovers(self) -> None:
        left = map(_LEFT.match, os.listdir(self._shards) if self._shards.is_dir() else ())
        for number in sorted({int(match[1]) for match in left if match}):
            try:
                with self.own(number):
                    self._remove_work(number)
            except Busy:
                continue

    @property
    def _shards(self) -> Path:
        return self.location / "shards"

    def _folder(self, shard: int) -> Path:
        return self._shards / f"{shard:05d}"

    def _remove_work(self, shard: int) -> None:
        """Remove unfinished work on a shard; for its owner only."""
        for leftover in self._shards.glob(f".tmp-{shard:05d}-*"):
            remove_folder(leftover)

    @staticmethod
    def _commit(work: Path, final: Path) -> None:
        """Give the finished work its name. A bad older shard of that name makes way only now."""
        sync_folder(work)
        old = work.with_name(work.name + "-old")
        if os.path.lexists(final):  # also a link to a disk that is gone
            os.rename(final, old)
        os.rename(work, final)
        sync_folder(final.parent)
        remove_folder(old)


def _link(source: str, target: str) -> None:
    """Let `target` be `source`'s content, never half of it: a hard link, or a copy where the disk has none."""
    try:
        os.link(source, target)
        return
    except FileExistsError:
        if os.path.samefile(source, target):
            return
    except OSError:
        pass  # a disk without hard links
    folder, name = os.path.split(target)
    part = os.path.join(folder, f".{name}.part")
    if os.path.lexists(part):
        os.unlink(part)
    try:
        os.link(source, part)
    except OSError:
        shutil.copyfile(source, part)
    os.replace(part, target)
