"""plan.json: written once, whole or not at all; a folder belongs to one plan for ever."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from engine.config import Settings
from engine.data.dataset import read_dataset
from engine.errors import DatasetError, RunConflict
from engine.generation.durable import to_json
from engine.generation.plan import Plan, make_plan
from engine.generation.store import Store, open_store

log = logging.getLogger(__name__)
VERSION = 1
TABLES = ("categories", "sources", "prompts", "rows")


def prepare(data: Path, out: Path | str | Store, images: int, seed: int, settings: Settings, identity: Mapping) -> Plan:
    """Make the run's plan in `out`, or take up the one that is there.

    Args:
        data: dataset folder; the images of its train split are the sources.
        out: the folder or URL for plan and shards: new, empty, or of the very same plan.
        images, seed, settings, identity: see `make_plan`.

    Returns:
        The plan. A plan that was there keeps its shard size, whatever the settings say now.

    Raises:
        RunConflict: `out` holds another plan (both digests and the differences are named) or foreign files.
        DatasetError: the dataset or the plan in `out` cannot be used.
    """
    if isinstance(out, Path) and out.exists() and not out.is_dir():
        raise RunConflict(f"{out} is a file. Give a folder for the generated dataset.")
    wanted = make_plan(read_dataset(data, "train"), images, seed, settings, identity)
    store = open_store(out)
    with store.own_plan():
        names = store.names()
        if "plan.json" in names:
            return _take_up(store, wanted)
        _refuse_foreign(store, names)
        store.write_bytes("plan.json", _lines(wanted))
    return wanted


def load_plan(out: Path | str | Store) -> Plan:
    """Read a run's plan and check it against its own digest.

    Raises:
        DatasetError: there is none, or it is damaged.
    """
    store = open_store(out)
    path = f"{store.location}/plan.json"
    try:
        text = store.read_bytes("plan.json")
    except (FileNotFoundError, NotADirectoryError):
        raise DatasetError(
            f"{store.location} holds no plan.json: it is not a folder of generated data. Check the path."
        ) from None
    try:
        content = json.loads(text)
        version = content["version"]
        plan = _parsed(content) if version == VERSION else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None
    if plan is None:
        raise DatasetError(f"{path} is of version {version!r}; this program reads version {VERSION}.")
    if plan.digest != content.get("digest"):
        raise _damaged(path, f"its content has digest {plan.digest}, it says {content.get('digest')}")
    return plan


def differences(old: Mapping, new: Mapping, prefix: str = "") -> list[str]:
    """`name: old -> new` of every value in which two nested mappings differ."""
    found = []
    for key in sorted({*old, *new}, key=str):
        first, second = old.get(key), new.get(key)
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            found += differences(first, second, f"{prefix}{key}.")
        elif first != second:
            found.append(f"{prefix}{key}: {first!r} -> {second!r}")
    return found


def _take_up(store: Store, wanted: Plan) -> Plan:
    existing = load_plan(store)
    if existing.digest != wanted.digest:
        # Through json, so that tuples and lists compare equal.
        changed = differences(existing.spec, json.loads(to_json(wanted.spec)))
        raise RunConflict(
            f"{store.location} holds another run: its plan is {existing.digest}, this command's is {wanted.digest} "
            f"({'; '.join(changed[:10]) or 'the items differ'}). "
            "Give the old settings to go on with it, or another --out folder. Nothing was changed."
        )
    if existing.shard_size != wanted.shard_size:
        log.info(
            "%s goes on with its %d items per shard, not %d.", store.location, existing.shard_size, wanted.shard_size
        )
    return dataclasses.replace(existing, batch_size=wanted.batch_size)


def _refuse_foreign(store: Store, names: list[str]) -> None:
    if names:
        raise RunConflict(
            f"{store.location} has no plan.json but is not empty ({', '.join(names[:5])}): "
            "it is not a generated dataset. Give another --out folder, or empty this one."
        )


def _lines(plan: Plan) -> Iterator[bytes]:
    """The file, one entry of a table per line."""
    head = {
        "version": VERSION,
        "digest": plan.digest,
        "shard_size": plan.shard_size,
        "batch_size": plan.batch_size,
        "spec": plan.spec,
    }
    yield to_json(head)[:-1]
    for name in TABLES:
        yield f',\n"{name}":['.encode()
        for index, entry in enumerate(getattr(plan, name)):
            yield (b",\n" if index else b"\n") + to_json(entry)
        yield b"]"
    yield b"}\n"


def _parsed(content: Mapping) -> Plan:
    sizes = {name: content[name] for name in ("shard_size", "batch_size")}
    for name, value in sizes.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} is {value!r}")
    tables = {name: tuple(tuple(entry) for entry in content[name]) for name in TABLES}
    return Plan(spec=content["spec"], **tables, **sizes)


def _damaged(path: str, why: str) -> DatasetError:
    return DatasetError(f"{path} is damaged ({why}). Bring the file back, or start anew in another folder.")
