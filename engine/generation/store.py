"""Where a run's plan and shards live: a local folder, or any URL that fsspec knows. Two stores, one way to use them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from engine.errors import ConfigError

_URL = re.compile(r"[a-z][a-z0-9+.-]+://")
_IPV6 = re.compile(r"\[[0-9a-fA-F:.]*\]?")
_BROKEN_URL = re.compile(r"[a-z][a-z0-9+.-]+:/(?!/)")


class BadShard(Exception):
    """A shard is not done; the text says why."""


class NoShard(BadShard):
    """Nothing was committed yet."""


class Files(Protocol):
    """The files of one committed shard. Names are relative, as in its shard.json."""

    def read(self, name: str) -> bytes: ...

    def sizes(self) -> dict[str, int]:
        """Bytes of every file that is there, from one look."""

    def hashes(self, names: list[str]) -> Iterator[tuple[str, str]]:
        """(name, sha256) of files, read in full."""

    def place(self, files: Mapping[str, Mapping], out: Path) -> None:
        """Bring files, name -> {"size", "sha256"}, into `out` under their names, each whole or not at all.

        Raises BadShard where one is not what was committed (a store that copies checks what it copies).
        """

    def is_placed(self, name: str, target: Path) -> bool:
        """Whether `target` is the very same file on the disk."""


class Store(Protocol):
    """A `LocalStore` or a `RemoteStore`.

    Attributes:
        location: what `open_store` was given; goes into messages and to other processes.
        ahead: how many shards may be asked for at once; 0 where nothing is gained by it.
    """

    location: Path | str
    ahead: int

    def read_bytes(self, name: str) -> bytes:
        """A file beside plan.json. Raises FileNotFoundError."""

    def write_bytes(self, name: str, chunks: Iterable[bytes]) -> str:
        """Put a whole file in the place of an old one, or leave the old one; returns the content's sha256."""

    def local_copy(self, name: str) -> Path:
        """A path under which the file can be memory-mapped; it stays while this process lives."""

    def names(self) -> list[str]:
        """What lies beside plan.json, sorted; hidden names and leases are left out."""

    def own_plan(self) -> AbstractContextManager:
        """Own the plan; waits for another owner to end."""

    def own(self, shard: int) -> AbstractContextManager:
        """Own a shard. Raises Busy."""

    def attempt(self, shard: int) -> AbstractContextManager[Path]:
        """A new local folder to fill. The end of the block commits it as a whole; an exception leaves nothing of it."""

    def read_commit(self, shard: int) -> bytes:
        """shard.json of a committed shard. Raises NoShard; FileNotFoundError where a shard has lost it."""

    def files(self, shard: int, commit: Mapping) -> Files:
        """The files that belong to a shard.json. Raises BadShard where it names none."""

    def withdraw(self, shard: int) -> None:
        """Take a commit back; for its owner only."""

    def remove_leftovers(self) -> None:
        """Remove what killed owners left behind, and attempts that were replaced; nothing of a live owner."""


def open_store(location: Path | str | Store) -> Store:
    """The store at a folder or URL; a store is given back as it is.

    Raises:
        ConfigError: the URL cannot be used: unknown protocol, package missing, no such bucket, no right to it.
        OSError: it cannot be reached.
    """
    if not isinstance(location, (Path, str)):
        return location
    if _URL.match(str(location)):
        check_url(str(location))
        return _remote(str(location))
    if _BROKEN_URL.match(str(location)):
        raise ConfigError(f"{location} is neither a folder nor a URL: write two slashes, as in s3://bucket/prefix.")
    from engine.generation.local_store import LocalStore

    return LocalStore(Path(location))


def check_url(url: str) -> None:
    """Refuse a store's URL that may hold a secret or that leads who knows where, before anybody prints or opens it.

    Raises:
        ConfigError: does not show the URL.
    """
    if "::" in _IPV6.sub("", url):
        raise ConfigError("The store's URL chains several file systems by '::'. Give the URL of one.")
    try:
        parts = urlsplit(url)
        has_secret = parts.password is not None or bool(parts.query)
        parts.port  # noqa: B018  a password with a slash reads as a port that is no number
    except ValueError as error:
        why = "its port is no number" if str(error).startswith("Port") else "brackets or letters that no URL has"
        raise ConfigError(f"The store's URL cannot be read ({why}). Write it as in s3://bucket/prefix.") from None
    if has_secret:
        raise ConfigError("The store's URL holds a password or a query. Give credentials in the environment instead.")
    if not parts.netloc and not parts.path.strip("/"):
        raise ConfigError(f"The store's URL {parts.scheme}:// names no place. Write it as in s3://bucket/prefix.")
    if ".." in parts.path.split("/"):
        raise ConfigError("The store's URL holds '..', which no object store knows. Write out where it leads.")


@functools.lru_cache(maxsize=8)  # connections are kept
def _remote(url: str) -> Store:
    from engine.generation.remote import RemoteStore

    return RemoteStore(url)


def is_remote(location: Path | str) -> bool:
    """Whether a location is a URL."""
    return bool(_URL.match(str(location)))
