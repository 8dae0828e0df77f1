"""Keeps the user's own Prefect out of the tests: its home, its profile, its server."""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest

# Before anything imports Prefect.
_HOME = tempfile.mkdtemp(prefix="de-tests-")
for name in [name for name in os.environ if name.startswith(("PREFECT_", "DVC_STAGE"))]:
    del os.environ[name]
os.environ |= {
    "PREFECT_HOME": _HOME,
    "PREFECT_API_URL": "",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
}
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes: their threads would fight each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_xdist_auto_num_workers(config):
    """Of `-n auto`: each process starts servers of its own, so more than four are too many on any machine."""
    return min(4, os.cpu_count() or 1)


def pytest_unconfigure(config):
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def prefect_server():
    """One temporary server for all flows of the run (about 10 s); yields nothing."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield
