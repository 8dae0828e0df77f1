"""Where the App finds plugins: ours, and those that the user has."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tasks.home import home_folder

PLUGIN = Path(__file__).parent / "fiftyone_plugin"


def plugin_environment(users: str | None) -> Mapping[str, str]:
    """Environment variables that give the App our operators beside the user's, read anew only when their files change.

    FiftyOne knows one folder of plugins and follows links in it. So it gets a folder of ours that holds two links, to
    our plugin and to the user's own folder, in which nothing is written.

    Args:
        users: the user's folder of plugins, as FiftyOne is set up; it need not exist.
    """
    folder = home_folder() / "plugins"
    folder.mkdir(parents=True, exist_ok=True)
    _link(folder / "diffusion-engine", PLUGIN)
    if users and Path(users).resolve() != folder.resolve():
        _link(folder / "users", Path(users).absolute())
    return {"FIFTYONE_PLUGINS_DIR": str(folder), "FIFTYONE_PLUGINS_CACHE_ENABLED": "true"}


def _link(link: Path, target: Path) -> None:
    """Make the link, or turn it to its target, in one step: another App may start at the same time."""
    if link.is_symlink() and os.readlink(link) == str(target):
        return
    new = link.with_name(f".{link.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    new.symlink_to(target, target_is_directory=True)
    os.replace(new, link)
