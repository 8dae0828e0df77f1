"""One dataset is open in one App, or in one for each reviewer; and the App keeps the user's own plugins."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext

import pytest

from engine.errors import ConfigError
from tasks.app_plugins import PLUGIN, plugin_environment
from tasks.app_queues import dataset_to_itself, opened


@pytest.fixture(autouse=True)
def own_home(monkeypatch, tmp_path):
    monkeypatch.setenv("DE_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize(
    ("first", "second", "refusal"),
    [
        (None, None, "another App, or being loaded"),
        (None, "anna", "another App for everyone"),
        ("anna", None, "another App"),
        ("anna", "anna", "another App for anna"),
        ("anna", "ben", None),
    ],
)
def test_who_may_open_beside_whom(first, second, refusal):
    with opened("cells", first):
        with nullcontext() if refusal is None else pytest.raises(ConfigError, match=refusal):
            with opened("cells", second):
                pass
        with opened("others", second), pytest.raises(ConfigError, match="cells is open in the App"):
            with dataset_to_itself("cells"):
                pass
    with dataset_to_itself("cells"), pytest.raises(ConfigError, match="being loaded"):
        with opened("cells", second):
            pass


def test_the_lock_lives_as_long_as_the_server_that_inherited_it():
    with opened("cells", "anna") as locks:
        server = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=locks)
    try:
        with pytest.raises(ConfigError, match="is open in the App"), dataset_to_itself("cells"):
            pass
    finally:
        server.communicate(b"\n")
    with dataset_to_itself("cells"):
        pass


def test_the_users_plugins_are_found_beside_ours_and_nothing_is_written_among_them(tmp_path):
    users = tmp_path / "mine"
    (users / "counter").mkdir(parents=True)
    (users / "counter" / "fiftyone.yml").write_text("name: '@me/counter'\n")
    folder = plugin_environment(str(users))["FIFTYONE_PLUGINS_DIR"]
    seen = {
        root for root, _, files in os.walk(folder, followlinks=True) if "fiftyone.yml" in files
    }  # as FiftyOne looks
    assert {os.path.realpath(root) for root in seen} == {str(PLUGIN.resolve()), str((users / "counter").resolve())}
    assert os.listdir(users) == ["counter"]
    other = tmp_path / "moved"
    users.rename(other)
    assert plugin_environment(str(other))["FIFTYONE_PLUGINS_DIR"] == folder
    assert os.path.isfile(os.path.join(folder, "users", "counter", "fiftyone.yml"))
    assert plugin_environment(folder)["FIFTYONE_PLUGINS_DIR"] == folder, "no link into itself"
    assert plugin_environment(str(tmp_path / "not there"))["FIFTYONE_PLUGINS_DIR"] == folder
