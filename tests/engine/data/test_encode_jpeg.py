from __future__ import annotations

import io

import numpy as np
from PIL import Image

from engine.data.images import encode_jpeg


def test_colour_keeps_its_resolution_and_bytes_say_nothing_else():
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, ::2, 0], pixels[:, 1::2, 2] = 255, 255  # columns of red and blue, one pixel wide
    content = encode_jpeg(Image.fromarray(pixels), 95)
    back = np.asarray(Image.open(io.BytesIO(content)))
    assert np.abs(back.astype(int) - pixels).max() < 30  # at half the resolution both become violet
    assert content == encode_jpeg(Image.fromarray(pixels), 95)
    assert set(Image.open(io.BytesIO(content)).info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
