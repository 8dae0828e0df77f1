"""What one check of `de doctor` found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OK, WARNING, PROBLEM = "ok", "warning", "problem"


@dataclass(frozen=True)
class Check:
    """One line of the examination.

    Attributes:
        name: what was looked at.
        level: "ok"; "warning": something will not work, or not well, that not everybody needs; "problem": mend it.
        found: what there is, in words.
        cure: what to do; None where nothing is to be done.
    """

    name: str
    level: Literal["ok", "warning", "problem"]
    found: str
    cure: str | None = None
