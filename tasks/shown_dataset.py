"""Which generated dataset the App of `de up` shows."""

from __future__ import annotations

from pathlib import Path

from engine.curation.pool import is_pool
from engine.errors import ConfigError, UserError
from engine.generation.run_file import read_run
from tasks.inventory import generated_folders

_FILE = "annotations.json"


def newest_dataset(workspace: Path) -> Path | None:
    """The generated dataset of a workspace that was finished last; None where there is none yet. A pool is not looked
    at: its images were reviewed where they were drawn."""
    finished = []
    for folder in generated_folders(workspace):
        if is_pool(folder):
            continue
        try:
            finished.append(((folder / _FILE).stat().st_mtime, folder))
        except OSError:  # not merged yet
            continue
    return max(finished)[1] if finished else None


def check_dataset(folder: Path) -> Path:
    """The folder, absolute.

    Raises:
        ConfigError: it holds no generated dataset.
    """
    if not (folder / _FILE).is_file():
        raise ConfigError(f"--app {folder}: there is no {_FILE}. Name the folder of a generated dataset.")
    return folder.absolute()


def source_of(generated: Path) -> Path | None:
    """The dataset that it was generated from, where that is known and there."""
    try:
        source = Path(read_run(generated).source.data)
    except UserError:
        return None
    return source if source.is_dir() else None
