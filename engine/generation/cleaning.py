"""Cleaning up to the end, also where Ctrl-C or SIGTERM comes in the middle of it."""

from __future__ import annotations

from collections.abc import Callable


def to_the_end(clean: Callable[[], object]) -> None:
    """Call `clean`, and once more if a signal's exception (no `Exception`) cuts it off; that exception then goes on.

    Args:
        clean: may be begun again.
    """
    try:
        clean()
    except Exception:
        raise
    except BaseException:
        clean()
        raise
