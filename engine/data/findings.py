"""What a check finds in a dataset, and the one error that a list of findings becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.errors import DatasetError

SHOWN = 10  # findings that an error message spells out


@dataclass(frozen=True)
class Finding:
    """One problem: what is wrong and why it matters, where (file, id), and what to do about it."""

    severity: Literal["error", "warning"]
    what: str
    where: str
    advice: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}. {self.advice}"


def error(where: str, what: str, advice: str) -> Finding:
    """A finding that makes the dataset unusable."""
    return Finding("error", what, where, advice)


def warning(where: str, what: str, advice: str) -> Finding:
    """A finding that is very likely a mistake, but may be meant."""
    return Finding("warning", what, where, advice)


def raise_errors(path: Path, findings: Sequence[Finding]) -> None:
    """Raise one DatasetError that spells out the first ten errors among `findings`; return when there are none."""
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return
    count = "1 problem" if len(errors) == 1 else f"{len(errors)} problems"
    first = f", the first {SHOWN}" if len(errors) > SHOWN else ""
    lines = "\n".join(f"  - {finding}" for finding in errors[:SHOWN])
    raise DatasetError(
        f"{path} cannot be used: {count}{first}:\n{lines}\n"
        f"`de validate {path.parent}` lists everything; `de import SRC OUT` repairs what has a stated rule."
    )
