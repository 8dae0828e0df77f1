"""How a scene of the embedded world looks: the same shapes and boxes as paint, or as a pencil drawing.

A second look with the same classes is what cross-domain detection is tried on. It changes a finished picture only, so
every object's pixels, box and mask stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

PAINT, SKETCH = "paint", "sketch"
_PAPER = np.array([250.0, 246.0, 236.0])
_GRAIN = 3.0  # grey levels of the paper's unevenness
_LINE = 5.0  # how fast a change of colour turns into a dark line
_TINT = 0.25  # of the paint that shows through, without its hue


def sketch(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A pencil drawing of a picture: dark lines where colours change, light shading elsewhere, on grainy paper."""
    colour = np.asarray(image.convert("RGB"), dtype=np.float32)
    slope = np.zeros(colour.shape[:2], np.float32)
    for axis in (0, 1):
        step = np.abs(np.diff(colour, axis=axis)).max(axis=2)
        before = [(0, 0), (0, 0)]
        before[axis] = (1, 0)
        after = [(0, 0), (0, 0)]
        after[axis] = (0, 1)
        slope = np.maximum(slope, np.maximum(np.pad(step, before), np.pad(step, after)) / 2)
    strength = np.clip(_LINE * slope / 255 - 0.1, 0, 0.85)[..., None]
    shade = 1 - _TINT * (1 - colour.mean(axis=2, keepdims=True) / 255)
    paper = (_PAPER + rng.normal(0, _GRAIN, (*slope.shape, 1))) * shade
    drawn = paper * (1 - strength) + 45 * strength
    return Image.fromarray(np.clip(drawn, 0, 255).astype(np.uint8))


LOOKS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    PAINT: lambda image, rng: image,
    SKETCH: sketch,
}
