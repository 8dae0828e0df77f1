"""Objects in S3 and what speaks like it, Google Cloud Storage and Azure, by obstore."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from engine.errors import ConfigError
from engine.generation.objects import short

AT_ONCE = 8  # requests
METADATA_SERVER = "169.254.169.254"  # where machines of clouds are asked for credentials
RETRY = {"max_retries": 6}
_MISSING = "Install the extra: uv sync --extra s3."


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
            raise FileNotFoundError(errno.ENOENT, short(error), where) from None
        except (kinds.PermissionDeniedError, kinds.UnauthenticatedError):
            raise ConfigError(
                f"{where}: the store refuses these credentials. They are read from the environment "
                "(AWS_ACCESS_KEY_ID and its like); check them and what they allow."
            ) from None
        except (kinds.BaseError, OSError) as error:
            if "NoSuchBucket" in str(error):
                raise FileNotFoundError(errno.ENOENT, "no such bucket", where) from None
            if METADATA_SERVER in str(error) and "AWS_ACCESS_KEY_ID" not in os.environ:
                raise ConfigError(
                    f"{where}: there are no credentials for it. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the "
                    "environment (this is no machine of a cloud that would give them)."
                ) from None
            raise OSError(errno.EIO, short(error), where) from None
