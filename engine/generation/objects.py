"""Objects under a URL: each appears whole or not at all. obstore for object stores, fsspec for all else.

Credentials come from the environment alone. They are in no message: what a server says beyond its status is cut off.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol
from urllib.parse import urlsplit

from engine.errors import ConfigError
from engine.generation.store import check_url

OBJECT_STORES = ("s3", "gs", "az")
MAX_TEXT = 200


class Objects(Protocol):
    """Keys are relative to the URL. Trouble on the way is an OSError, a want of rights a ConfigError.

    Attributes:
        at_once: how many calls may run side by side.
    """

    at_once: int

    def get(self, key: str) -> bytes:
        """Raises FileNotFoundError."""

    def put(self, key: str, content: bytes) -> None: ...

    def create(self, key: str, content: bytes) -> bool:
        """Put an object where there is none; False where there is one."""

    def sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of every object below the folder `prefix`, by its key relative to it."""

    def names(self, prefix: str) -> list[str]:
        """Names of objects and folders directly below the folder `prefix`, sorted."""

    def remove(self, keys: list[str]) -> None:
        """Remove objects; none of them has to be there."""


def open_objects(url: str) -> Objects:
    """What holds the objects below a URL.

    Raises:
        ConfigError: see `check_url`; an unknown protocol, a missing package, no such bucket, no right to it.
        OSError: it cannot be reached.
    """
    check_url(url)
    objects: Objects
    if urlsplit(url).scheme in OBJECT_STORES:
        from engine.generation.object_store import ObjectStore

        objects = ObjectStore(url)
    else:
        from engine.generation.file_store import FileStore

        objects = FileStore(url)
    try:
        objects.names("")
    except FileNotFoundError as error:
        raise ConfigError(f"{url} cannot be used: {error}. Check the URL: its bucket has to be there.") from None
    return objects


def side_by_side(objects: Objects, function: Callable, arguments: list) -> list:
    """function(argument) of each, in order; the first exception is raised."""
    if objects.at_once == 1 or len(arguments) < 2:
        return [function(argument) for argument in arguments]
    with ThreadPoolExecutor(min(objects.at_once, len(arguments))) as threads:
        waiting = [threads.submit(function, argument) for argument in arguments]
        try:
            return [future.result() for future in waiting]
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def short(error: Exception) -> str:
    """The first words of an error: a server's answer may repeat what it was sent, keys included."""
    return str(error).split("<?xml")[0].split("\n")[0].strip(" :")[:MAX_TEXT]
