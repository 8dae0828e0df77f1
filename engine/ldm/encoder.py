"""Source images through the VAE's encoder: once for all variants that are near each other, and in full calls."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence

from torch import Tensor

from engine.errors import DatasetError, UserError
from engine.ldm.diffusion import LatentDiffusion
from engine.ldm.jobs import stack_rows

REMEMBERED_BYTES = 2**28
Moments = tuple[Tensor, Tensor | None]


class Encoder:
    """Remembers what the encoder said of images, the latest ones."""

    def __init__(self, ldm: LatentDiffusion):
        self._ldm = ldm
        self._known: OrderedDict[Hashable, Moments] = OrderedDict()
        self._bytes = 0

    def moments(
        self, keys: Sequence[Hashable], read: Callable[[Hashable], Tensor], rows_per_call: int
    ) -> Iterator[Moments | Exception]:
        """One after the other, on demand: mean and deviation (1, C, h, w), or why an image cannot be read.

        Args:
            keys: an image each, in the order in which they are wanted; the same key is the same image.
            read: key -> pixels (3, H, W) in [-1, 1], all of one size.
            rows_per_call: images that each call of the encoder gets; one that is wanted brings the next ones along.

        Raises:
            UserError: from `read`, but for DatasetError.
            MemoryError, torch.OutOfMemoryError: there is too little of it.
        """
        unreadable: dict[Hashable, Exception] = {}
        for place, key in enumerate(keys):
            if key not in self._known and key not in unreadable:
                self._encode(keys[place:], read, rows_per_call, unreadable)
            if key in unreadable:
                yield unreadable[key]
            else:
                self._known.move_to_end(key)
                yield self._known[key]

    def _encode(self, keys, read, rows_per_call: int, unreadable: dict[Hashable, Exception]) -> None:
        found: dict[Hashable, Tensor] = {}
        for key in keys:
            if len(found) == rows_per_call:
                break
            if key in found or key in self._known or key in unreadable:
                continue
            try:
                found[key] = read(key)
            except MemoryError:
                raise
            except Exception as error:
                if isinstance(error, UserError) and not isinstance(error, DatasetError):
                    raise  # a matter of the run, not of an item
                unreadable[key] = error.with_traceback(None)  # its frames would keep tensors alive
        if not found:
            return
        mean, std = self._ldm.encode_moments(stack_rows(list(found.values()), rows_per_call))
        self._make_room(len(found) * mean[0].nbytes * (1 if std is None else 2))
        for i, key in enumerate(found):
            kept = mean[i : i + 1].clone(), None if std is None else std[i : i + 1].clone()
            self._known[key] = kept
            self._bytes += _bytes_of(kept)

    def _make_room(self, wanted: int) -> None:
        while self._known and self._bytes + wanted > REMEMBERED_BYTES:
            self._bytes -= _bytes_of(self._known.popitem(last=False)[1])


def _bytes_of(moments: Moments) -> int:
    return sum(tensor.nbytes for tensor in moments if tensor is not None)
