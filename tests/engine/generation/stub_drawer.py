"""A drawer without models: image and boxes are functions of the item's seed. It misbehaves on request.

Requests are in `behaviour.json` in the adapter's folder, which is not part of the identity:
raise_items: {item: text}; fits: number of items in flight that memory holds; die_items: [item], each once;
sleep_s: per batch; hang_items: [item], each once; gate_from: items from this number on wait for a file `open` there;
repeat: {item: the seed of the image that it draws again}.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.errors import ModelError
from engine.generation.room import Room, draw_in_room

CATEGORY_IDS = (2, 5, 9)
LOADER = "stub_drawer:load"


@dataclass(frozen=True)
class Drawn:  # the fields of engine.generation.draw.Drawn, without its models
    image: np.ndarray
    boxes_xyxy: np.ndarray
    scores: np.ndarray
    category_ids: np.ndarray


class StubDrawer:
    def __init__(self, adapter: Path, identity: dict | None = None):
        self.adapter = Path(adapter)
        self.identity = identity or {"ldm": {"id": "stub", "multiple": 16}, "adapter": {"sha256": "a" * 64}}
        path = self.adapter / "behaviour.json"
        self.room = Room()
        self.behaviour = json.loads(path.read_text()) if path.exists() else {}

    def draw(self, items, batch_size):
        print("a library that talks")
        return draw_in_room(self._draw, items, batch_size, 1, self.room)

    def _draw(self, items, in_flight, rows):
        for start in range(0, len(items), in_flight):
            batch = items[start : start + in_flight]
            with open(self.adapter / "drawn.log", "a") as log:
                log.write(" ".join(str(item.item) for item in batch) + f" {os.getpid()}\n")
            time.sleep(self.behaviour.get("sleep_s", 0))
            while batch[-1].item >= self.behaviour.get("gate_from", math.inf) and not (self.adapter / "open").exists():
                time.sleep(0.05)
            if len(batch) > self.behaviour.get("fits", in_flight):
                raise MemoryError("batch too large")
            yield from [self._draw_or_misbehave(item) for item in batch]

    def _draw_or_misbehave(self, item):
        try:
            self._misbehave(item.item)
        except ValueError as error:
            if isinstance(error, ModelError):
                raise
            return error
        return draw_one(item, self.behaviour.get("repeat", {}).get(str(item.item), item.seed))

    def _misbehave(self, number: int) -> None:
        if str(number) in self.behaviour.get("raise_items", {}):
            raise ValueError(self.behaviour["raise_items"][str(number)])
        if number in self.behaviour.get("model_error_items", []):
            raise ModelError("the last step ends at another noise level")
        if number in self.behaviour.get("die_items", []):
            mark = self.adapter / f"died-{number}"
            if not mark.exists() or self.behaviour.get("die_always"):
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        if number in self.behaviour.get("hang_items", []):
            mark = self.adapter / f"hung-{number}"
            if not mark.exists():
                mark.touch()
                time.sleep(3600)


def draw_one(item, seed: int | None = None) -> Drawn:
    rng = np.random.default_rng(item.seed if seed is None else seed)
    coarse = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
    image = np.kron(coarse, np.ones((item.height // 4, item.width // 4, 1), dtype=np.uint8))
    count = int(rng.integers(0, 6))
    corner = rng.uniform(-8, max(item.width, item.height), (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 24, (count, 2))], axis=1)
    scores = rng.uniform(0.05, 1.0, count)
    if count == 5:
        boxes[0, 1] = np.nan
        scores[1] = np.inf
    return Drawn(image, boxes, scores, rng.choice(CATEGORY_IDS, count))


def load(data, ldm, adapter, settings) -> StubDrawer:
    print('{"ready": "a library that talks while it loads"}')
    if ldm == "missing":
        raise ModelError("There is no model 'missing'.")
    return StubDrawer(adapter)
