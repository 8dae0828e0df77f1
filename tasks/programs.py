"""Other programs, called with a list of words, never a shell line, and never asked a question."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from engine.errors import RunFailed

# Set by git for its hooks: they would lead git away from the folder that it is called in.
_GITS_OWN = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR")


def call(command: Sequence[str], folder: Path, purpose: str, seconds: float = 3600.0, **environment: str) -> str:
    """Run a program in a folder and return what it printed, as text.

    Args, Raises: see `output_of`.
    """
    return output_of(command, folder, purpose, seconds, **environment).decode("utf-8", errors="replace")


def output_of(command: Sequence[str], folder: Path, purpose: str, seconds: float = 3600.0, **environment: str) -> bytes:
    """Run a program in a folder and return what it printed, byte for byte.

    Args:
        purpose: for the message, after "Could not".
        environment: variables that it gets besides this process' own.

    Raises:
        RunFailed: it is not there, does not end in time, or ends with another code than 0; holds its last words.
    """
    own = {name: value for name, value in os.environ.items() if name not in _GITS_OWN}
    try:
        done = subprocess.run(
            list(command),
            cwd=folder,
            env={**own, "GIT_TERMINAL_PROMPT": "0", "DVC_NO_ANALYTICS": "1", **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunFailed(f"Could not {purpose}: {error}") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode("utf-8", errors="replace").strip()[-1500:]
        raise RunFailed(f"Could not {purpose} ({Path(command[0]).name} ended with {done.returncode}): {said}")
    return done.stdout
