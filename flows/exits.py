"""How a command ends: one message and an exit code, whatever happened inside."""

from __future__ import annotations

import errno
import logging
import os
import signal
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from typer.core import TyperGroup

from engine.errors import RunFailed, UserError

USER_ERROR, FAILURE, INTERRUPTED, TERMINATED = 2, 1, 130, 143
# Disk, rights and network: the message is all that there is to say, and a traceback would only hide it.
OF_THE_MACHINE = {
    getattr(errno, name)
    for name in "ENOSPC EDQUOT EROFS EACCES EPERM EIO EMFILE ECONNREFUSED ECONNRESET ETIMEDOUT EHOSTUNREACH "
    "ENETUNREACH EEXIST EISDIR ENOTDIR ENOTEMPTY ENAMETOOLONG ELOOP".split()
}


class Terminated(KeyboardInterrupt):
    """SIGTERM: everything that cleans up after Ctrl-C cleans up after it too."""


class GuardedGroup(TyperGroup):
    """The command group: a user's mistake ends with 2, a failure with 1, Ctrl-C with 130, SIGTERM with 143; never with
    a traceback.
    """

    def invoke(self, ctx):
        try:
            with _sigterm_raises():
                return super().invoke(ctx)
        except UserError as error:
            _say(str(error))
            raise typer.Exit(USER_ERROR) from None
        except RunFailed as error:
            _say(str(error))
            raise typer.Exit(FAILURE) from None
        except Terminated:
            _say("Stopped by SIGTERM. What was finished is kept; the same command goes on from there.")
            raise typer.Exit(TERMINATED) from None
        except KeyboardInterrupt:
            _say("Interrupted. What was finished is kept; the same command goes on from there.")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            raise typer.Exit(FAILURE) from None
        except Exception as error:
            if type(error).__module__.partition(".")[0] == "typer":
                raise  # usage errors and exits are typer's business
            if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
                names = [str(name) for name in (error.filename, error.filename2) if name is not None]
                where = f": {' -> '.join(names)}" if names else ""
                _say(
                    f"Failed: {error.strerror}{where}. What was finished is kept; put the cause right and give the "
                    "same command again."
                )
                raise typer.Exit(FAILURE) from None
            log = _write_traceback()
            reason = str(error).strip().splitlines()
            _say(
                f"Failed: {type(error).__name__}{': ' + reason[0][:500] if reason else ''}\nThe traceback is in {log}."
            )
            raise typer.Exit(FAILURE) from None


def quiet_logging() -> None:
    """Our own warnings on stderr, one line each; of other libraries only errors."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    for name in ("engine", "tasks", "flows"):
        logging.getLogger(name).setLevel(os.environ.get("DE_LOG_LEVEL", "WARNING"))


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Inside the block SIGTERM raises Terminated, unless somebody else handles it."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number, frame):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the second one would end the cleaning in the middle
    raise Terminated


def printable(text: str) -> str:
    """Words of a dataset or a file, as they may be shown: what a terminal would obey is written out."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def _say(message: str) -> None:
    typer.echo(printable(message), err=True)


def _write_traceback() -> str:
    handle, path = tempfile.mkstemp(prefix="de-", suffix=".log")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(traceback.format_exc())
    return path
