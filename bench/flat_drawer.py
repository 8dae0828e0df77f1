"""A drawer without models, for benches of what is around the drawing: each image is one colour."""

from __future__ import annotations

import numpy as np

from engine.generation.draw import Drawn

NOTHING = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)


class FlatDrawer:
    identity = {"ldm": {"id": "none", "multiple": 16}, "adapter": {"weights_sha256": "0" * 64}}

    def draw(self, items, batch_size=None):
        return [Drawn(np.full((i.height, i.width, 3), i.seed % 256, np.uint8), *NOTHING) for i in items]


def load(data, ldm, adapter, settings) -> FlatDrawer:
    """As `engine.generation.draw.load_drawer`."""
    return FlatDrawer()
