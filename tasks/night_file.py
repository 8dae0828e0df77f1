"""Where the nights are: `<nights>/<number>/night.json` of each, and `<nights>/promoted.json`, the pool trained on.

    <nights>/promoted.json        {"format": 1, "night": 2, "pool": "0002/pool", "images": 1800}
    <nights>/0003/night.json      how far night 3 is, see `Night`
    <nights>/0003/generated/      what it drew
    <nights>/0003/pool/           the promoted pool of before, and what review accepted of tonight
    <nights>/0003/comparison/     real against real + that pool

Every step writes its outcome before the next one begins, so a night that was cut off goes on where it was. In a
workspace `promoted.json` is an output of the stage `pool`: an older version of the pool that is brought back brings it
back too, and the next night builds on that.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from engine.data.files import write_atomically
from engine.errors import DatasetError
from engine.generation.lock import lock

FORMAT = 1
NIGHT, PROMOTED_FILE = "night.json", "promoted.json"
PROMOTED, REJECTED = "promoted", "rejected"
_NUMBER = re.compile(r"\d{4,9}")


@dataclass(frozen=True)
class Night:
    """A night and what is done of it; None where a step is not done yet.

    Attributes:
        number: from 1; also the seed of its images.
        base: the pool that was promoted when the night began, relative to the nights' folder; "" for none.
        plan: {images, limited_by, class_weights, size_weights, weak_in, requests, seconds_per_image,
            measured}.
        drawn: counts of the generation, and where it was drawn in one go {seconds, workers, work}.
        review: {accepted, rejected, batch}.
        waits_for: id of the flow run that is suspended until a person has looked; "" where none can be.
        looked: whether a person has looked.
        comparison: {mean, low, high, outcome}, mAP from 0 to 1.
        pool_images: of the merged pool.
        ruling, reason: what the review or the policy of promotion says, PROMOTED or REJECTED, and why.
        version: tag of the pool that a promoted night made; None where none was made.
        note: why not, or why it is not in DVC's remote.
        verdict: the ruling once all that follows from it is done: then the night is over.
    """

    number: int
    base: str | None = None
    plan: Mapping | None = None
    drawn: Mapping | None = None
    review: Mapping | None = None
    waits_for: str | None = None
    looked: bool = False
    pool_images: int | None = None
    comparison: Mapping | None = None
    ruling: str | None = None
    reason: str | None = None
    version: str | None = None
    note: str | None = None
    verdict: str | None = None

    @property
    def headline(self) -> str:
        """How it went, or how it stands, in one sentence."""
        name = f"Night {self.number}"
        if self.ruling is not None:
            return f"{name} is {self.ruling}: {self.reason}."
        if self.waits_for is not None:
            return f"{name} waits until a person has looked at its {self.review['images']} images."
        return f"{name} is not over: the flow scale-up goes on with it when it runs again."


@dataclass(frozen=True)
class Nights:
    """The folder of all nights."""

    folder: Path

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Inside the block no other process works on the nights. Raises RunConflict where one does."""
        with lock(self.folder / ".nights.lock", f"The nights of {self.folder}"):
            yield

    def folder_of(self, night: Night) -> Path:
        """Its own folder."""
        return self.folder / f"{night.number:04d}"

    def all(self) -> list[Night]:
        """By number. A folder without a night.json is a night that was cut off before its first step.

        Raises:
            DatasetError: a night.json cannot be read.
        """
        there = self.folder.iterdir() if self.folder.is_dir() else ()
        return [self.read(number) for number in sorted(int(p.name) for p in there if _NUMBER.fullmatch(p.name))]

    def open_night(self) -> Night:
        """The last night, if it has no verdict yet; else the next one, whose folder is made."""
        nights = self.all()
        if nights and nights[-1].verdict is None:
            return nights[-1]
        night = Night(nights[-1].number + 1 if nights else 1)
        self.folder_of(night).mkdir(parents=True)
        return night

    def read(self, number: int) -> Night:
        """Raises DatasetError where night.json cannot be read."""
        path = self.folder_of(Night(number)) / NIGHT
        if not path.is_file():
            return Night(number)
        content = _read(path)
        try:
            night = Night(**content)
        except TypeError as error:
            raise _damaged(path, error) from None
        if night.number != number:
            raise _damaged(path, f"it tells of night {night.number}")
        return night

    def write(self, night: Night, **changes) -> Night:
        """Write the night with these changes, whole or not at all; returns it."""
        night = dataclasses.replace(night, **changes)
        _write(self.folder_of(night) / NIGHT, dataclasses.asdict(night))
        return night

    def promoted(self) -> str:
        """The pool that is trained on, relative to the nights' folder; "" for none yet.

        Raises:
            DatasetError: promoted.json cannot be read, or names no folder here.
        """
        path = self.folder / PROMOTED_FILE
        if not path.is_file():
            return ""
        pool = _read(path).get("pool")
        if not isinstance(pool, str) or not re.fullmatch(rf"({_NUMBER.pattern}/pool)?", pool):
            raise _damaged(path, f"its pool is {pool!r}")
        if pool and not (self.folder / pool).is_dir():
            raise DatasetError(
                f"{path} names the pool {pool}, which is not in {self.folder}. Copy it there, from where the nights "
                "ran or from the output of the stage `pool`; or remove the file, to begin without a pool."
            )
        return pool

    def promote(self, night: Night | None) -> None:
        """Let the night's pool be the one that is trained on; None: there is none yet."""
        pool = f"{self.folder_of(night).name}/pool" if night else ""
        images = night.pool_images if night else 0
        _write(self.folder / PROMOTED_FILE, {"night": night.number if night else 0, "pool": pool, "images": images})


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_bytes())
        if content.pop("format") != FORMAT:
            raise ValueError(f"it is not of format {FORMAT}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, error) from None
    return content


def _write(path: Path, content: Mapping) -> None:
    write_atomically(path, (json.dumps({"format": FORMAT, **content}, indent=1) + "\n").encode())


def _damaged(path: Path, why: object) -> DatasetError:
    return DatasetError(f"{path} is damaged ({why}). Bring the file back; what the nights made is not touched.")
