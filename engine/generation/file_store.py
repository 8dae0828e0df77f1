"""Objects as files of any other file system of fsspec: sftp, a mounted disk, memory."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from engine.errors import ConfigError
from engine.generation.objects import short


class FileStore:
    """A file system over which a rename is whole or nothing."""

    at_once = 1  # not every one of them may be used from several threads

    def __init__(self, url: str):
        import fsspec

        self._url = url
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url.rstrip("/"))
        except (ImportError, ValueError) as error:
            raise ConfigError(f"{url} cannot be used as a store: {error}.") from None
        except Exception as error:  # each file system has its own
            raise _as_os_error(error, url) from None

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
            raise ConfigError(f"{where}: {short(error)}. Check the rights of this user on the store.") from None
        except Exception as error:  # each file system has its own
            raise _as_os_error(error, where) from None


def _as_os_error(error: Exception, where: str) -> OSError:
    text = short(error) or type(error).__name__
    return OSError(getattr(error, "errno", None) or errno.EIO, text, where)
