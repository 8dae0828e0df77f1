"""When a Prefect task is tried again: after trouble that may pass, never after a mistake of the user's."""

from __future__ import annotations

import errno

from prefect.tasks import exponential_backoff

from engine.errors import UserError
from engine.generation.worker_process import WorkerNotStarted

# A full or read-only disk does not empty itself within seconds.
_HOPELESS_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def is_hopeless(error: BaseException) -> bool:
    """Would the next attempt end in the same way?"""
    return isinstance(error, (UserError, WorkerNotStarted, MemoryError)) or (
        isinstance(error, OSError) and error.errno in _HOPELESS_ERRNO
    )


def worth_retrying(task, task_run, state) -> bool:
    """Prefect's retry condition; `state.data` is the exception."""
    return not (isinstance(state.data, BaseException) and is_hopeless(state.data))


# Results are never cached: what is done is read from the disk, each time.
RETRIED = {
    "retries": 2,
    "retry_delay_seconds": exponential_backoff(backoff_factor=2),
    "retry_condition_fn": worth_retrying,
    "persist_result": False,
}
