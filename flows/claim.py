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
        RunConflict: it holds something else; names what differs. DatasetError: its record cannot be read.
    """
    path = out / FILE
    if path.exists():
        found = read_json(path)
        changed = [key for key in wanted if not isinstance(found, dict) or found.get(key) != wanted[key]]
        if changed:
            raise RunConflict(
                f"{out} holds a {what} with other {', '.join(changed)}. Give another --out, or remove the folder."
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(wanted, indent=1) + "\n").encode())
