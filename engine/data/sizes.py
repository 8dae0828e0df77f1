"""The size in pixels at which a model works on an image."""

from __future__ import annotations


def working_size(width: int, height: int, resolution: int, multiple: int) -> tuple[int, int]:
    """(width, height) with short edge `resolution`, aspect kept up to 2:1, both sides rounded to `multiple` pixels.

    Rounding and the limit on the aspect stretch the image a little rather than cutting objects off.
    """
    short, long = min(width, height), max(width, height)
    short_out = max(multiple, round(resolution / multiple) * multiple)
    long_out = max(short_out, round(resolution * min(long / short, 2.0) / multiple) * multiple)
    return (long_out, short_out) if width >= height else (short_out, long_out)
