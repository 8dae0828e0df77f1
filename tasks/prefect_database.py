"""Where Prefect's server keeps its history: a SQLite file of the workspace, or a PostgreSQL that a URL names.

Only the server is given the URL, by its environment: it is on no command line, in no log, and flows do not have it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping

from engine.errors import ConfigError, RunFailed

SETTING = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
_OLD_SETTING = "PREFECT_API_DATABASE_CONNECTION_URL"
_PREFIXES = ("PREFECT_SERVER_DATABASE_", "PREFECT_API_DATABASE_")
_DRIVERS = {"postgresql": "postgresql+asyncpg", "postgresql+asyncpg": "postgresql+asyncpg"}
_SQLITE = "sqlite+aiosqlite"
_SECONDS = 10.0


def without_database(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of everything but the server."""
    return {name: value for name, value in environment.items() if not name.startswith(_PREFIXES)}


def database_environment(option: str | None) -> tuple[dict[str, str], str]:
    """The server's settings of its database, and the database's name for people, which holds no secret.

    Args:
        option: URL without a password; where None, PREFECT_SERVER_DATABASE_* of the environment count.

    Raises:
        ConfigError: no URL of a database that Prefect takes, or `option` holds a password.
        RunFailed: the database does not let us in; says why.
    """
    given = {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES)}
    text = option or given.get(SETTING) or given.get(_OLD_SETTING)
    if text is None:
        return given, "PREFECT_SERVER_DATABASE_*" if given else "SQLite"
    if "${" in text:  # Prefect fills in the password itself
        return given | {SETTING: text}, f"the database of {SETTING}"
    url = _parse(text, "--database" if option else SETTING)
    if option and (url.password or "password" in url.query):
        raise ConfigError(
            "--database holds a password, which every user of this machine can read in the list of processes. Put the "
            f"URL into {SETTING} instead, or the password into ~/.pgpass or PGPASSWORD."
        )
    if url.drivername == _SQLITE:
        return given | {SETTING: text}, "SQLite"
    name = f"PostgreSQL at {url.host or 'localhost'}:{url.port or 5432}/{url.database or ''}"
    asyncio.run(_enter(url, name))
    given.pop(_OLD_SETTING, None)
    return given | {SETTING: url.render_as_string(hide_password=False)}, name


def _parse(text: str, source: str):
    """The URL, with Prefect's driver. No message repeats it: it may hold a password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        url = None
    if url is None or url.drivername not in {*_DRIVERS, _SQLITE}:
        raise ConfigError(f"{source} is no URL of the form postgresql+asyncpg://user@host:5432/database.")
    return url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))


async def _enter(url, name: str) -> None:
    """Connect once, so that a mistake is told in one line and not by the server's traceback."""
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = None
    try:
        engine = create_async_engine(url, connect_args={"timeout": _SECONDS})
        async with engine.connect():
            pass
    except Exception as error:  # asyncpg's, sqlalchemy's, the system's
        cause = getattr(error, "orig", None) if isinstance(error, SQLAlchemyError) else error
        reason = str(cause).strip().splitlines() or [type(error).__name__]
        told = reason[0].replace(url.password, "***") if url.password else reason[0]
        raise RunFailed(f"{name} cannot be used: {told}. Start it, create the database, or mend the URL.") from None
    finally:
        if engine is not None:
            await engine.dispose()
