"""The engine's own drawer, slowed down: it waits between images as long as chaos.py says."""

from __future__ import annotations

import os
import time

from engine.generation.draw import load_drawer


def load(*arguments):
    """As `load_drawer`."""
    drawer, pause = load_drawer(*arguments), float(os.environ["DE_CHAOS_PAUSE_S"])
    draw = drawer.draw

    def slowly(items, *options):
        for result in draw(items, *options):
            time.sleep(pause)
            yield result

    drawer.draw = slowly
    return drawer
