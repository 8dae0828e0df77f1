"""Objects under a URL: each appears whole or not at all. obstore for object stores, fsspec for all else.

Credentials come from the environment alone. They are in no message: what a server says beyond its status is cut off.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Protocol
from urllib.parse import urlsplit

from engine.errors import ConfigError

OBJECT_STORES = ("s3", "gs", "az")
AT_ONCE = 8  # requests
RETRY = {"max_retries": 6}
_MISSING = "Install the extra: uv sync --extra s3."
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
        ConfigError: a password in the URL, an unknown protocol, a missing package, no such bucket, no right to it.
        OSError: it cannot be reached.
    """
    parts = urlsplit(url)
    if parts.password is not None or parts.query:
        raise ConfigError("The store's URL holds a password or a query. Give credentials in the environment instead.")
    objects = ObjectStore(url) if parts.scheme in OBJECT_STORES else FileStore(url)
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


class ObjectStore:
    """S3 and what speaks like it, Google Cloud Storage, Azure."""

    at_once = AT_ONCE

    def __init__(self, url: str):
        try:
            import obstore
            from obstore.store import from_url
        except ImportError as error:
            raise ConfigError(f"{url} needs the package obstore ({error}). {_MISSING}") from None
        self._calls, self._url = obstore, url
        # Whoever names an http endpoint (MinIO in the next room, a test on this machine) means it.
        named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        with self._plainly(""):
            self._store = from_url(
                url.rstrip("/"), client_options={"allow_http": named.startswith("http://")}, retry_config=dict(RETRY)
            )

    def get(self, key: str) -> bytes:
        with self._plainly(key):
            return bytes(self._calls.get(self._store, key).bytes())

    def put(self, key: str, content: bytes) -> None:
        with self._plainly(key):
            self._calls.put(self._store, key, content, use_multipart=False)

    def create(self, key: str, content: bytes) -> bool:
        with self._plainly(key):
            try:
                self._calls.put(self._store, key, content, mode="create")
            except self._calls.exceptions.AlreadyExistsError:
                return False
            return True

    def sizes(self, prefix: str) -> dict[str, int]:
        with self._plainly(prefix):
            pages = self._calls.list(self._store, prefix)
            return {str(PurePosixPath(o["path"]).relative_to(prefix)): o["size"] for page in pages for o in page}

    def names(self, prefix: str) -> list[str]:
        with self._plainly(prefix):
            found = self._calls.list_with_delimiter(self._store, prefix or None)
            paths = [o["path"] for o in found["objects"]] + list(found["common_prefixes"])
            return sorted(PurePosixPath(path).name for path in paths)

    def remove(self, keys: list[str]) -> None:
        for start in range(0, len(keys), 1000):
            with self._plainly(keys[start]):
                try:
                    self._calls.delete(self._store, keys[start : start + 1000])
                except FileNotFoundError:
                    pass

    @contextmanager
    def _plainly(self, key: str) -> Iterator[None]:
        """The library's exceptions as ours."""
        where = f"{self._url}/{key}" if key else self._url
        kinds = self._calls.exceptions
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, _short(error), where) from None
        except (kinds.PermissionDeniedError, kinds.UnauthenticatedError):
            raise ConfigError(
                f"{where}: the store refuses these credentials. They are read from the environment "
                "(AWS_ACCESS_KEY_ID and its like); check them and what they allow."
            ) from None
        except (kinds.BaseError, OSError) as error:
            if "NoSuchBucket" in str(error):
                raise FileNotFoundError(errno.ENOENT, "no such bucket", where) from None
            raise OSError(errno.EIO, _short(error), where) from None


class FileStore:
    """Any other file system of fsspec, over which a rename is whole or nothing: sftp, a mounted disk, memory."""

    at_once = 1  # not every one of them may be used from several threads

    def __init__(self, url: str):
        import fsspec

        self._url = url
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url.rstrip("/"))
        except (ImportError, ValueError) as error:
            raise ConfigError(f"{url} cannot be used as a store: {error}.") from None
        except OSError as error:
            raise OSError(error.errno or errno.EIO, _short(error), url) from None

    def get(self, key: str) -> bytes:
        with self._plainly(key):
            return self._fs.cat_file(self._path(key))

    def put(self, key: str, content: bytes) -> None:
        part = f"{key}.{secrets.token_hex(4)}.part"
        with self._plainly(key):
            self._make_folder(part)
            self._fs.pipe_file(self._path(part), content)
            self._fs.mv(self._path(part), self._path(key))

    def create(self, key: str, content: bytes) -> bool:
        with self._plainly(key):
            self._make_folder(key)
            try:
                with self._fs.open(self._path(key), "xb") as file:
                    file.write(content)
            except FileExistsError:
                return False
            return True

    def sizes(self, prefix: str) -> dict[str, int]:
        with self._plainly(prefix):
            self._fs.invalidate_cache()
            root = self._path(prefix)
            found = self._fs.find(root, detail=True)
            return {str(PurePosixPath(path).relative_to(root)): entry["size"] for path, entry in found.items()}

    def names(self, prefix: str) -> list[str]:
        with self._plainly(prefix):
            self._fs.invalidate_cache()
            try:
                return sorted(PurePosixPath(path).name for path in self._fs.ls(self._path(prefix), detail=False))
            except FileNotFoundError:
                return []

    def remove(self, keys: list[str]) -> None:
        for key in keys:
            with self._plainly(key):
                try:
                    self._fs.rm_file(self._path(key))
                except FileNotFoundError:
                    pass

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def _make_folder(self, key: str) -> None:
        self._fs.makedirs(str(PurePosixPath(self._path(key)).parent), exist_ok=True)

    @contextmanager
    def _plainly(self, key: str) -> Iterator[None]:
        where = f"{self._url}/{key}" if key else self._url
        try:
            yield
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "not there", where) from None
        except PermissionError as error:
            raise ConfigError(f"{where}: {_short(error)}. Check the rights of this user on the store.") from None
        except OSError as error:
            raise OSError(error.errno or errno.EIO, _short(error), where) from None


def _short(error: Exception) -> str:
    """The first words of an error: a server's answer may repeat what it was sent, keys included."""
    return str(error).split("<?xml")[0].split("\n")[0].strip(" :")[:MAX_TEXT]
