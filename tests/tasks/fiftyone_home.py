"""A database of their own for tests that need FiftyOne, so that nothing of the user's is touched."""

from __future__ import annotations

import pytest

from tasks.fiftyone_connection import connected_fiftyone


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DE_HOME", str(folder))
        patch.delenv("FIFTYONE_DATABASE_URI", raising=False)
        yield folder


@pytest.fixture(scope="module")
def fiftyone(home):
    with connected_fiftyone() as module:
        pass
    return module  # stays connected: a process gives its server back when it ends
