"""The items of a plan as one table of numbers: which source serves when, and every random number, decided beforehand.

A million items are 41 MB and take seconds: the order is arithmetic on whole columns, and one sha256 an item gives all
its random numbers.
"""

from __future__ import annotations

import hashlib

import numpy as np

from engine.sections import GenerationSettings

MODES = ("img2img", "text_to_image")
# Little-endian whatever the machine: the bytes of the table are part of the plan's digest.
ITEM = np.dtype(
    [
        ("source", "<u4"),  # index in the plan's sources
        ("prompt", "<u4"),  # index in its prompts
        ("style", "<u2"),  # index in its styles
        ("mode", "<u1"),  # index in MODES
        ("seed", "<u8"),
        ("strength", "<f8"),
        ("guidance_scale", "<f8"),
        ("eta", "<f8"),
    ]
)
CHUNK = 1 << 16  # rows that are turned into bytes at a time
_SPARE = 11  # bits of each 64-bit word of a hash that the 53 of a number leave


def arrange(weights: np.ndarray, images: int, together: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Which source serves which item.

    The (v+1)-th use of a source of weight w is due at (v + 1/2) / w, and items are the uses in the order in which they
    are due (Webster's apportionment). So shares are proportional to the weights to within about one use, an item does
    not depend on how many follow it, and sources of equal weight serve in turns, each equally often.

    Args:
        weights: (S,) of the sources, in the order in which equal ones serve; 0 leaves a source out.
        images: number of items, at least 1.
        together: order the items by source rather than by when they are due.

    Returns:
        (images,) index of each item's source, and (images,) how often that source was used before.
    """
    late = (images + len(weights)) / weights.sum()  # at least `images` uses are due by then
    uses = np.floor(late * weights + 0.5).astype(np.int64)
    source = np.repeat(np.arange(len(weights)), uses)
    variant = np.arange(len(source)) - np.repeat(np.cumsum(uses) - uses, uses)
    first = np.argsort((variant + 0.5) / weights[source], kind="stable")[:images]
    if together:
        first = np.sort(first)
    return source[first], variant[first]


def fill_numbers(
    rows: np.ndarray, run_seed: int, source_ids: np.ndarray, variants: np.ndarray, settings: GenerationSettings
) -> None:
    """Set seed, mode, strength, guidance scale and eta of all rows.

    An item's numbers come from the run seed, its source's id and its variant alone. Strength, guidance and eta are
    uniform in the settings' ranges, to 4 decimals. Of all items, the `text_to_image` share with the lowest keys in the
    spare bits of their hashes is drawn from words alone: the share is exact, and no other number tells which.

    Args:
        source_ids, variants: (N,) of the items.
    """
    keys = np.empty(len(rows), np.uint64)
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        words = _random_words(run_seed, source_ids[part], variants[part])
        _set_numbers(rows[part], words >> np.uint64(_SPARE), settings)
        keys[part] = _spare_key(words)
    wanted = int(len(rows) * settings.text_to_image + 0.5)
    if wanted:
        chosen = np.argsort(keys, kind="stable")[:wanted]
        rows["mode"][chosen] = MODES.index("text_to_image")
        rows["strength"][chosen] = 1.0


def column_bytes(rows: np.ndarray):
    """The table's bytes in pieces."""
    for start in range(0, len(rows), CHUNK):
        yield rows[start : start + CHUNK].tobytes()


def _random_words(run_seed: int, source_ids: np.ndarray, variants: np.ndarray) -> np.ndarray:
    """(N, 4) uniform 64-bit words: the sha256 of each item."""
    texts = (f"{run_seed}:{i}:{v}" for i, v in zip(source_ids.tolist(), variants.tolist(), strict=True))
    digests = b"".join([hashlib.sha256(text.encode("ascii")).digest() for text in texts])
    return np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 4)


def _set_numbers(rows: np.ndarray, numbers: np.ndarray, settings: GenerationSettings) -> None:
    """From (N, 4) whole numbers below 2^53."""
    rows["seed"] = numbers[:, 0]
    ranges = (("strength", "strength"), ("guidance_scale", "guidance"), ("eta", "eta"))
    for column, (field, name) in enumerate(ranges, start=1):
        low, high = getattr(settings, f"{name}_min"), getattr(settings, f"{name}_max")
        values = low + (high - low) * (numbers[:, column] / 2.0**53)
        rows[field] = np.clip(np.round(values, 4), low, high)


def _spare_key(words: np.ndarray) -> np.ndarray:
    key = np.zeros(len(words), np.uint64)
    for column in range(words.shape[1]):
        key = (key << np.uint64(_SPARE)) | (words[:, column] & np.uint64((1 << _SPARE) - 1))
    return key
