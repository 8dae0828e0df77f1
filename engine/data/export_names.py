"""Where exported pictures go, and under which names."""

from __future__ import annotations

import os
import shutil
from itertools import count
from pathlib import Path, PurePosixPath


class FlatNames:
    """Names for formats with one flat folder, where a picture and its labels share the stem: sub/a.png -> sub_a.png.

    A stem that is taken (also in other letter case) gets a number. The same names in the same order give the same
    result.
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def of(self, file_name: str) -> str:
        """The flat name of a picture."""
        path = PurePosixPath(file_name.replace("/", "_"))
        for number in count(1):
            # Without dots at its end: they would be taken for the dot of a suffix.
            own = path.stem.rstrip(".") or "image"
            stem = own if number == 1 else f"{own}-{number}"
            if stem.casefold() not in self._taken:
                self._taken.add(stem.casefold())
                return stem + path.suffix


def place(source: Path, target: Path, link: bool) -> None:
    """A copy of a picture, or with `link` a hard link (a copy where the disk has none)."""
    if link:
        try:
            os.link(source, target)
            return
        except FileExistsError:
            raise
        except OSError:
            pass
    shutil.copyfile(source, target)
