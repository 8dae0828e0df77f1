"""plan.json and items.npy: written once, whole or not at all; a folder belongs to one plan for ever.

plan.json is written last and holds the sha256 of items.npy: without it there is no plan.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from engine.data.dataset import Dataset
from engine.data.sources import read_sources
from engine.errors import DatasetError, RunConflict
from engine.generation.disk import check_disk, check_room, estimate
from engine.generation.durable import to_json
from engine.generation.items_file import ITEMS, check_rows, is_items, read_items, write_items
from engine.generation.plan import TABLES, Plan, make_plan
from engine.generation.store import Store, is_remote, open_store
from engine.generation.wishes import number_of_images
from engine.sections import Settings

log = logging.getLogger(__name__)
VERSION = 2
COLUMNS = {"categories": (int, str, str), "sources": (int, str, int, int), "prompts": (str, str)}
MAX_SIDE = 65_535  # pixels of a jpeg
MAX_TEXT = 200  # characters of a damaged file that are shown


def prepare(
    data: Path, out: Path | str | Store, images: int | None, seed: int, settings: Settings, identity: Mapping
) -> Plan:
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
        ConfigError: see `make_plan`; or the disk of `out` has no room for it (what is drawn already is there).
    """
    store = open_store(out)
    plan = plan_for(read_sources(data, settings.generation.unlabelled), store, images, seed, settings, identity)
    with store.own_plan():
        existing = _planned_in(store, plan)
        if existing is None:
            store.write_bytes("plan.json", _lines(plan, write_items(store, plan.rows)))
    return existing or plan


def plan_for(
    dataset: Dataset, out: Path | str | Store, images: int | None, seed: int, settings: Settings, identity: Mapping
) -> Plan:
    """The plan that `prepare` would make in `out`, or take up there, after the same checks. Writes nothing."""
    store = open_store(out)
    local = None if is_remote(store.location) else Path(store.location)
    if local is not None and local.exists() and not local.is_dir():
        raise RunConflict(f"{local} is a file. Give a folder for the generated dataset.")
    if local is not None and "plan.json" not in store.names():
        check_room(number_of_images(images, settings.generation.variants_per_image, len(dataset.images)), local)
    wanted = make_plan(dataset, images, seed, settings, identity)
    plan = _planned_in(store, wanted) or wanted
    if local is not None:
        check_disk(plan, local, estimate(plan, dataset))
    return plan


def _planned_in(store: Store, wanted: Plan) -> Plan | None:
    """The plan in a store, if that is new, empty or of the very same plan."""
    if "plan.json" in store.names():
        return _take_up(store, wanted)
    refuse_foreign(store)
    return None


def refuse_foreign(out: Path | str | Store) -> None:
    """Refuse a folder or URL that holds something, and no plan.

    Raises:
        RunConflict: names what is there. ConfigError, OSError: see `open_store`.
    """
    store = open_store(out)
    names = store.names()
    if "plan.json" in names:
        return
    if ITEMS in names and is_items(store):  # of a plan that was cut off before its plan.json
        names = [name for name in names if name != ITEMS]
    if names:
        raise RunConflict(
            f"{store.location} has no plan.json but is not empty ({', '.join(names[:5])}): "
            "it is not a generated dataset. Give another --out folder, or empty this one."
        )


def load_plan(out: Path | str | Store) -> Plan:
    """Read a run's plan and check it against its own digest. The items are mapped, not read into memory.

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
        parts = _parsed(content) if version == VERSION else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"{type(error).__name__}: {str(error)[:MAX_TEXT]}") from None
    if parts is None:
        raise DatasetError(f"{path} is of version {str(version)[:20]}; this program reads version {VERSION}.")
    rows = read_items(store, content["items_sha256"])
    check_rows(f"{store.location}/{ITEMS}", rows, *(len(parts[name]) for name in ("sources", "prompts", "styles")))
    plan = Plan(rows=rows, **parts)
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


def _lines(plan: Plan, items_sha256: str) -> Iterator[bytes]:
    """The file, one entry of a table per line."""
    head = {
        "version": VERSION,
        "digest": plan.digest,
        "items_sha256": items_sha256,
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


def _parsed(content: Mapping) -> dict:
    """The plan's parts but its rows."""
    sizes = {name: content[name] for name in ("shard_size", "batch_size")}
    for name, value in sizes.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} is {value!r}")
    if not isinstance(content["items_sha256"], str):
        raise ValueError("items_sha256 is no text")
    _check_spec(content["spec"])
    tables = {name: tuple(_entry(name, entry) for entry in content[name]) for name in TABLES}
    return {"spec": content["spec"], **tables, **sizes}


def _check_spec(spec) -> None:
    """Its parts are there, and it can be written again as json: there is no NaN in it."""
    named = {"seed": spec["seed"], "images": spec["images"], "data": spec["data"], "identity": spec["identity"]}
    kinds = {"seed": int, "images": int, "data": str, "identity": dict}
    wrong = [name for name, value in named.items() if type(value) is not kinds[name]]
    if type(spec["settings"]["generation"]) is not dict:
        wrong.append("settings.generation")
    if wrong:
        raise ValueError(f"spec.{wrong[0]} is of another kind")
    to_json(spec)


def _entry(table: str, entry):
    """An entry of a table in its types."""
    if table == "styles":
        fits = type(entry) is str
    else:
        kinds = COLUMNS[table]
        fits = type(entry) is list and [type(value) for value in entry] == list(kinds)
    if fits and table == "sources":
        fits = all(0 < side <= MAX_SIDE for side in entry[2:])
    if not fits:
        raise ValueError(f"an entry of {table} is {str(entry)[:MAX_TEXT]}")
    return tuple(entry) if table != "styles" else entry


def _damaged(path: str, why: str) -> DatasetError:
    return DatasetError(f"{path} is damaged ({why}). Bring the file back, or start anew in another folder.")
