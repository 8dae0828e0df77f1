"""64-bit perceptual hashes: images that look alike have hashes that differ in few bits.

The hash is the sign pattern of the lowest cosine frequencies of the grey image (known as pHash). Scaling, light
compression and brightness leave it nearly unchanged; two different scenes differ in about half of their bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

BITS = 64
_GRID = 32  # pixels per side of the grey thumbnail
_KEPT = 8  # lowest frequencies per axis
_FLAT = 2.0  # grey levels: below this spread there is no picture, only compression noise
_CELLS = 2**24  # of the distance table held in memory at once


def perceptual_hash(image: Image.Image) -> int:
    """The hash of one image, an int in [0, 2^64).

    A flat image (spread below 2 grey levels) has hash 0, so that all flat images are duplicates of each other.

    Args:
        image: any mode, any size.
    """
    thumbnail = image.convert("L").resize((_GRID, _GRID), Image.Resampling.LANCZOS)
    grey = np.asarray(thumbnail, dtype=np.float64)
    if grey.std() < _FLAT:
        return 0
    transform = _cosine_transform()
    low = (transform @ grey @ transform.T)[:_KEPT, :_KEPT].ravel()
    low = np.round(low, 6)  # sums of different order must not flip a bit of a symmetric image
    bits = low > np.median(low[1:])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def hash_distances(first: Sequence[int], second: Sequence[int]) -> np.ndarray:
    """Differing bits of every pair: (len(first), len(second)) uint8 in [0, 64]."""
    return np.bitwise_count(_array(first)[:, None] ^ _array(second)[None, :])


def nearest(queries: Sequence[int], references: Sequence[int]) -> list[tuple[int, int]]:
    """For each query the closest reference.

    Returns:
        (distance in bits, index of the reference; the first one at a tie) per query.

    Raises:
        ValueError: queries without references.
    """
    if not len(queries):
        return []
    if not len(references):
        raise ValueError("No reference hashes to compare with.")
    found: list[tuple[int, int]] = []
    rows = max(1, _CELLS // len(references))
    for start in range(0, len(queries), rows):
        table = hash_distances(queries[start : start + rows], references)
        best = table.argmin(axis=1)
        found += [(int(table[row, column]), int(column)) for row, column in enumerate(best)]
    return found


def find_duplicates(hashes: Sequence[int], distance: int) -> dict[int, int]:
    """Near-duplicates in a sequence; the first of each family is kept.

    An element is a duplicate when it differs in at most `distance` bits from an earlier element that is kept itself,
    so a chain of small changes is not thrown away whole.

    Returns:
        index of each duplicate -> index of the kept element that it repeats.
    """
    values = _array(hashes)
    duplicates: dict[int, int] = {}
    kept = np.zeros(len(values), dtype=bool)
    for index, value in enumerate(values):
        earlier = np.flatnonzero(kept[:index])
        close = earlier[np.bitwise_count(values[earlier] ^ value) <= distance]
        if close.size:
            duplicates[index] = int(close[0])
        else:
            kept[index] = True
    return duplicates


def _array(hashes: Sequence[int]) -> np.ndarray:
    return np.array(list(hashes), dtype=np.uint64)


def _cosine_transform() -> np.ndarray:
    """(32, 32) matrix of the unscaled type-II cosine transform; row = frequency."""
    steps = np.arange(_GRID)
    return np.cos(np.pi * (2 * steps[None, :] + 1) * steps[:, None] / (2 * _GRID))
