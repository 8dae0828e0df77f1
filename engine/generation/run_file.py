"""run.json: where a run's data and models are on this machine. It serves `resume`, and is part of no digest."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ConfigError, DatasetError, RunConflict
from engine.generation.disk import nearest_folder
from engine.generation.durable import replace_durably
from engine.generation.source import DEFAULT_LOADER, DrawerSource
from engine.generation.store import check_url, is_remote

VERSION = 1
RUN = "run.json"


@dataclass(frozen=True)
class Run:
    """A run that was begun.

    Attributes:
        source: where its drawer comes from.
        store: URL of its plan and shards; None where they are in the folder itself.
        workers: as many as it was begun with.
    """

    source: DrawerSource
    store: str | None
    workers: int

    def location(self, out: Path) -> Path | str:
        """Where plan and shards are."""
        return out if self.store is None else self.store


def write_run(out: Path, source: DrawerSource, store: str | None, workers: int) -> None:
    """Write `out`/run.json, whole or not at all, with absolute paths. What is there already stays where it is equal."""
    named = source.as_json()
    del named["loader"]  # it comes from code, never from a file
    for name in ("data", "adapter", "ldm"):
        if name != "ldm" or Path(source.ldm).is_dir():
            named[name] = str(Path(named[name]).absolute())
    content = {"version": VERSION, **named, "store": store, "workers": workers}
    text = json.dumps(content, indent=2, ensure_ascii=True, allow_nan=False).encode("ascii") + b"\n"
    path = out / RUN
    if not path.is_file() or path.read_bytes() != text:
        out.mkdir(parents=True, exist_ok=True)
        replace_durably(path, [text])


def read_run(out: Path, loader: str = DEFAULT_LOADER) -> Run:
    """Read `out`/run.json.

    Raises:
        DatasetError: there is none, or it cannot be read.
    """
    path = out / RUN
    try:
        content = json.loads(path.read_bytes())
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']!r}")
        source = DrawerSource.from_json(content | {"loader": loader})
        store, workers = content["store"], content["workers"]
        if not (store is None or (isinstance(store, str) and is_remote(store))):
            raise ValueError(f"store {store!r}")
        if type(workers) is not int or workers < 1:
            raise ValueError(f"workers {workers!r}")
    except (FileNotFoundError, NotADirectoryError):
        raise DatasetError(
            f"{out} holds no {RUN}: no run was begun here, or it was begun by an older version. "
            "Give the command `de generate` that began it again; what is finished is kept."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ConfigError) as error:
        raise DatasetError(
            f"{path} is damaged ({type(error).__name__}: {error}). Give the command `de generate` that began the run "
            "again: it writes the file anew, and what is finished is kept."
        ) from None
    return Run(source, store, workers)


def store_of(out: Path) -> Path | str:
    """Where the plan and the shards of a folder's dataset are."""
    return read_run(out).location(out) if (out / RUN).is_file() and not (out / "plan.json").is_file() else out


def check_out(out: Path, store: str | None) -> None:
    """Refuse a folder that is another dataset's, or this one's from another store. Nothing is written.

    Raises:
        RunConflict: says what is there.
        ConfigError: the store is no URL, or the folder cannot be written in.
    """
    if store is not None:
        check_url(store)  # before it is in any message
        if not is_remote(store):
            raise ConfigError("--store is no URL such as s3://bucket/prefix. A local folder is what --out is for.")
    if out.exists() and not out.is_dir():
        raise RunConflict(f"{out} is a file. Give a folder for the generated dataset.")
    there = nearest_folder(out)
    if not os.access(there, os.W_OK | os.X_OK):  # False for root too where the disk is mounted read-only
        raise ConfigError(f"{there} cannot be written in: check its rights, or give --out on another disk.")
    names = sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) if out.is_dir() else []
    if "plan.json" in names:
        before = None
    elif RUN in names:
        before = _recorded_store(out)
    else:
        if store is not None and names:
            raise RunConflict(
                f"{out} is not empty ({', '.join(names[:5])}) and no run was begun in it. "
                "Give another --out folder, or empty this one."
            )
        return
    if before != store:
        where = {None: "in the folder itself"}
        raise RunConflict(
            f"{out} holds a run whose shards are {where.get(before, before)}, not {where.get(store, store)}. "
            "Give the old --store to go on with it, or another --out folder. Nothing was changed."
        )


def _recorded_store(out: Path) -> str | None:
    return read_run(out).store
