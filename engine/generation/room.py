"""Drawing within the memory that there is: what does not fit is begun again with less of it at a time."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import RunFailed

if TYPE_CHECKING:
    from engine.generation.draw import Drawn
    from engine.generation.plan import PlannedItem

log = logging.getLogger(__name__)
_WORDS = ("out of memory", "can't allocate memory")  # torch says the latter of a CPU, in a plain RuntimeError


@dataclass
class Room:
    """The most that a process draws at a time, learnt from what ran out of memory; None: not known yet."""

    in_flight: int | None = None
    rows: int | None = None


def draw_in_room(
    start: Callable[[Sequence[PlannedItem], int, int], Iterator[Drawn | Exception]],
    items: Sequence[PlannedItem],
    in_flight: int,
    rows: int,
    room: Room,
) -> Iterator[Drawn | Exception]:
    """One result an item, in their order. Where memory runs out, the items without a result are begun again with half
    as many in flight; at one in flight, with half as many rows per call; `room` remembers it.

    Args:
        start: (items, in flight, rows per call) -> results in order.

    Raises:
        RunFailed: one item with one row per call does not fit.
    """
    through = 0
    while through < len(items):
        flying, width = min(in_flight, room.in_flight or in_flight), min(rows, room.rows or rows)
        results = start(items[through:], flying, width)
        try:
            for result in results:
                through += 1
                yield result
            return
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no more memory'}"
        finally:
            results.close()
        _shrink(room, flying, width, text)
        gc.collect()  # frames of the error held tensors


def is_out_of_memory(error: Exception) -> bool:
    """Whether it says that memory ran out, of the machine or of an accelerator."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


def _shrink(room: Room, in_flight: int, rows: int, text: str) -> None:
    if in_flight > 1:
        room.in_flight = in_flight // 2
        log.warning("Out of memory with %d images in flight: it goes on with %d. %s", in_flight, room.in_flight, text)
    elif rows > 1:
        room.rows = rows // 2
        log.warning(
            "Out of memory with %d rows per call: it goes on with %d, and images may differ in their last digits from "
            "those of other workers. For the same bytes everywhere set generation.rows_per_call=%d. %s",
            *(rows, room.rows, room.rows, text),
        )
    else:
        raise RunFailed(f"Out of memory with a single image and one row per call: {text}")
