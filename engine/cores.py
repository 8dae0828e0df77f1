"""How many processors this process may use."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Those that the process is bound to, where the system says: in a container or a batch job fewer than the machine
    has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
