"""A folder belongs to one request: what a long job is of, written down before it starts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from engine.data.bounded_json import read_json
from engine.data.files import write_atomically
from engine.errors import RunConflict

FILE = "request.json"


def claim(out: Path, wanted: Mapping, what: str) -> None:
    """Write `wanted` to `out`, or check that it is what `out` holds already.

    Raises:
        RunConflict: it holds something else, whose difference is named, or the work of an earlier version that did not
            write down as much. DatasetError: its record cannot be read.
    """
    path = out / FILE
    if path.exists():
        found = read_json(path)
        found = found if isinstance(found, dict) else {}
        unknown = [key for key in wanted if key not in found]
        if unknown:
            raise RunConflict(
                f"{out} holds a {what} of an earlier version, which did not note its {', '.join(unknown)}: nobody "
                "can tell whether it is the same. Give another --out, or remove the folder."
            )
        changed = [key for key in wanted if found[key] != wanted[key]]
        if changed:
            raise RunConflict(
                f"{out} holds a {what} with other {', '.join(changed)}. Give another --out, or remove the folder."
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(wanted, indent=1) + "\n").encode())
