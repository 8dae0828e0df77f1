"""requests.jsonl, beside annotations.json: images that a person wants more or fewer like, one request a line.

    {"image_id": 7, "source_image_id": 3, "classes": ["car"], "encode_ratio": 0.55, "wish": "more"}

The next plan honours it (`generation.requests`): sources asked for more serve more often.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from engine.data.bounded_json import read_json_lines
from engine.data.coco_checks import id_problem, is_number
from engine.data.files import write_atomically
from engine.errors import DatasetError

FILE = "requests.jsonl"
MORE, LESS = "more", "less"
_KEYS = {"image_id", "source_image_id", "classes", "encode_ratio", "wish"}
_CURE = "Correct the line or remove it."


@dataclass(frozen=True)
class Request:
    """A wish about one generated image.

    Attributes:
        image_id: of the generated image.
        source_image_id: the real image that it was drawn from.
        classes: names of the classes of its boxes.
        encode_ratio: at which it was drawn; None where that is not known.
        wish: MORE or LESS.
    """

    image_id: int
    source_image_id: int
    classes: tuple[str, ...]
    encode_ratio: float | None
    wish: str


def read_requests(path: Path) -> tuple[Request, ...]:
    """The requests of a file, in its order.

    Raises:
        DatasetError: missing, or a line that is no request; names the entry.
    """
    requests = []
    for number, entry in enumerate(read_json_lines(Path(path)), start=1):
        fault = _fault(entry)
        if fault:
            raise DatasetError(f"{path}, entry {number}: {fault}. {_CURE}")
        requests.append(Request(**(entry | {"classes": tuple(entry["classes"])})))
    return tuple(requests)


def merge_requests(paths: Iterable[Path], out: Path) -> int:
    """Write the requests of several datasets, drawn from the same sources, as those of one. Returns their number.

    Images are numbered anew: image 5 of one dataset is not image 5 of another.

    Raises:
        DatasetError: a file is broken; nothing is written.
    """
    merged, numbers = [], {}
    for place, path in enumerate(paths):
        for request in read_requests(path):
            number = numbers.setdefault((place, request.image_id), len(numbers) + 1)
            merged.append(replace(request, image_id=number))
    _write(out, merged)
    return len(merged)


def add_requests(folder: Path, requests: Iterable[Request]) -> Path:
    """Append requests to a dataset's file in one step; callers take turns.

    Raises:
        DatasetError: the file that lies there is broken; nothing is written.
    """
    path = Path(folder) / FILE
    whole = (*(read_requests(path) if path.exists() else ()), *requests)
    _write(path, whole)
    return path


def wishes_by_source(requests: Iterable[Request]) -> dict[int, str]:
    """Source image id -> MORE or LESS. Of several requests about one image the last holds; of the images of one source
    the majority does, and where they balance nothing is wished."""
    last = {(request.source_image_id, request.image_id): request.wish for request in requests}
    balance: dict[int, int] = {}
    for (source, _), wish in last.items():
        balance[source] = balance.get(source, 0) + (1 if wish == MORE else -1)
    return {source: MORE if sum_ > 0 else LESS for source, sum_ in sorted(balance.items()) if sum_}


def _write(path: Path, requests: Iterable[Request]) -> None:
    lines = [json.dumps(asdict(request), sort_keys=True, allow_nan=False) for request in requests]
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())


def _fault(entry: object) -> str | None:
    """Why a line is no request; None when it is one."""
    if not isinstance(entry, dict) or set(entry) != _KEYS:
        return f"must be an object of {', '.join(sorted(_KEYS))}"
    for key in ("image_id", "source_image_id"):
        if id_problem(entry[key]):
            return f"its {key} {id_problem(entry[key])}"
    if not isinstance(entry["classes"], list) or not all(isinstance(name, str) for name in entry["classes"]):
        return "'classes' must be a list of names"
    ratio = entry["encode_ratio"]
    if ratio is not None and not (is_number(ratio) and 0 <= ratio <= 1):
        return f"its encode_ratio is {ratio!r}, no number from 0 to 1"
    return None if entry["wish"] in (MORE, LESS) else f"its wish is {entry['wish']!r}; write {MORE} or {LESS}"
