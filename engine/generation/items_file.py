"""items.npy: the items of a plan in numpy's own format, read through a memory map and never unpickled."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from engine.errors import DatasetError
from engine.generation.durable import sha256_of
from engine.generation.plan_rows import ITEM, MODES, column_bytes
from engine.generation.store import Store

ITEMS = "items.npy"
MOST = 1000  # no guidance and no eta is larger


def write_items(store: Store, rows: np.ndarray) -> str:
    """Write items.npy beside the plan, whole or not at all; returns its sha256."""
    return store.write_bytes(ITEMS, _pieces(rows))


def read_items(store: Store, sha256: str) -> np.ndarray:
    """The items, mapped into memory read-only.

    Args:
        sha256: of the file, as plan.json has it.

    Raises:
        DatasetError: the file is missing or not the one that was written.
    """
    path = f"{store.location}/{ITEMS}"
    try:
        copy = store.local_copy(ITEMS)
        found = sha256_of(copy)
    except OSError as error:
        raise _damaged(path, f"it cannot be read: {error}") from None
    if found != sha256:
        raise _damaged(path, f"its sha256 is {found}, plan.json says {sha256}")
    rows = _mapped(copy)
    if rows is None:
        raise _damaged(path, "it is no table of planned items")
    return rows


def is_items(store: Store) -> bool:
    """Whether the store's items.npy is such a table, of whichever plan."""
    return _mapped(store.local_copy(ITEMS)) is not None


def check_rows(path: str, rows: np.ndarray, sources: int, prompts: int, styles: int) -> None:
    """Refuse rows that point outside the plan's tables, or that nothing can be drawn with.

    Raises:
        DatasetError: names the file and the column.
    """
    for name, end in (("source", sources), ("prompt", prompts), ("style", styles), ("mode", len(MODES))):
        if len(rows) and rows[name].max() >= end:
            raise _damaged(path, f"column '{name}' points to entry {rows[name].max()} of {end}")
    for name, high in (("strength", 1), ("guidance_scale", MOST), ("eta", MOST)):
        if not (rows[name].min() >= 0 and rows[name].max() <= high):  # NaN is neither
            raise _damaged(path, f"column '{name}' holds numbers that are none from 0 to {high}")


def _mapped(path: Path) -> np.ndarray | None:
    try:
        rows = np.lib.format.open_memmap(path, mode="r")  # reads only .npy, and refuses objects
    except Exception:  # its header is python text, and what that text can raise has no end
        return None
    return np.asarray(rows) if rows.dtype == ITEM and rows.ndim == 1 and len(rows) else None


def _pieces(rows: np.ndarray) -> Iterator[bytes]:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(rows))
    yield header.getvalue()
    yield from column_bytes(rows)


def _damaged(path: str, why: str) -> DatasetError:
    return DatasetError(f"{path} is damaged ({why}). Bring the file back, or start anew in another folder.")
