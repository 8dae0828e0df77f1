"""Json from strangers: bounded in size and depth, without duplicate keys, NaN or Infinity."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from engine.errors import DatasetError

MAX_JSON_BYTES = 512 * 2**20  # COCO's own train2017 annotations have 448 MB
MAX_DEPTH = 32


def read_json(
    path: Path, max_bytes: int = MAX_JSON_BYTES, max_depth: int = MAX_DEPTH, non_finite_as_null: bool = False
) -> object:
    """The content of a json file in UTF-8.

    Args:
        path: the file.
        max_bytes: larger files are refused before they are read.
        max_depth: how deep objects and lists may lie in each other.
        non_finite_as_null: read the words NaN and Infinity as null instead of refusing them.

    Raises:
        DatasetError: missing, too large, cut off, too deep, duplicate keys, NaN or Infinity; names the file.
    """
    return _parsed(_read_text(path, max_bytes), path, max_depth, non_finite_as_null)


def read_json_lines(path: Path, max_bytes: int = MAX_JSON_BYTES, max_depth: int = MAX_DEPTH) -> list[object]:
    """The contents of a file that holds one json value a line; empty lines are passed over.

    Raises:
        DatasetError: as `read_json`; names the line too.
    """
    lines = enumerate(_read_text(path, max_bytes).split("\n"), start=1)
    return [_parsed(line, f"{path}, line {number},", max_depth) for number, line in lines if line.strip()]


def _parsed(text: str, path: Path | str, max_depth: int, non_finite_as_null: bool = False) -> object:
    constant = (lambda word: None) if non_finite_as_null else _refuse_constant
    try:
        document = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=constant)
        _check_tree(document, max_depth)
    except RecursionError:
        raise DatasetError(_too_deep(path, max_depth)) from None
    except json.JSONDecodeError as error:
        raise DatasetError(
            f"{path} is not complete, valid json: {error.msg} at line {error.lineno}, column {error.colno}. "
            "Was the copy or download cut off? Fetch or write the file again."
        ) from None
    except _TooDeep:
        raise DatasetError(_too_deep(path, max_depth)) from None
    except ValueError as error:
        raise DatasetError(f"{path} is refused: {error}. Correct the program that wrote it.") from None
    return document


def _read_text(path: Path, max_bytes: int) -> str:
    if not path.is_file():
        raise DatasetError(f"There is no file {path}. Check the path.")
    size = os.path.getsize(path)
    if size > max_bytes:
        raise DatasetError(
            f"{path} has {size} bytes; at most {max_bytes} are read, to bound memory. "
            "Split the dataset, or raise the limit (max_json_bytes)."
        )
    try:
        with open(path, "rb") as file:
            return file.read(max_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not text in UTF-8 ({error}). Is it the json file that you meant?") from None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from None


class _TooDeep(ValueError):
    pass


def _too_deep(path: Path | str, max_depth: int) -> str:
    return f"{path} is refused: lists or objects lie more than {max_depth} deep in each other. It is no COCO file."


def _refuse_constant(word: str):
    raise ValueError(f"it holds {word}, which is no json number (and makes an evaluation silently wrong)")


def _unique_keys(pairs: list[tuple[str, object]]) -> dict:
    content = dict(pairs)
    if len(content) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"an object has the key {twice[:80]!r} twice, and readers disagree on which one counts")
    return content


def _check_tree(document: object, max_depth: int) -> None:
    """Level by level, so that depth costs no recursion. 1e999 reads as infinity, hence the second check."""
    level = [[document]]
    for _ in range(max_depth + 1):  # the outermost list is our own
        below: list = []
        for container in level:
            for value in container.values() if isinstance(container, dict) else container:
                if isinstance(value, (dict, list)):
                    below.append(value)
                elif isinstance(value, float) and not math.isfinite(value):
                    raise ValueError("it holds a number too large for 64 bits")
        if not below:
            return
        level = below
    raise _TooDeep
