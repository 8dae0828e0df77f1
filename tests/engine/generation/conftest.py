from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest
from PIL import Image
from stub_drawer import CATEGORY_IDS, LOADER

from engine.data.dataset import write_dataset
from engine.data.records import Annotation, Category, ImageRecord
from engine.generation.run import generate
from engine.sections import GenerationSettings, LdmSettings, Settings


def write_source(folder: Path, captions=("", "", "", "", "")) -> Path:
    """Five small pictures of three classes; the last two have no object."""
    (folder / "images").mkdir(parents=True)
    images, boxes = [], []
    for i, caption in enumerate(captions, start=1):
        Image.new("RGB", (44, 32), (i * 20, 0, 0)).save(folder / "images" / f"{i}.png")
        images.append(ImageRecord(i, f"{i}.png", 44, 32, {"caption": caption} if caption else {}))
        for category_id in CATEGORY_IDS[: max(0, 4 - i)]:
            box = (2.0, 3.0, 10.0, 9.0)
            boxes.append(Annotation(len(boxes) + 1, i, category_id, box, 90.0, 0, {}))
    write_dataset(folder, "train", images, boxes, [Category(i, f"class{i}") for i in CATEGORY_IDS])
    return folder


def make_settings(**generation) -> Settings:
    values = {"shard_size": 5, "batch_size": 4, "ignore_threshold": 0.2, "score_threshold": 0.4} | generation
    return Settings(ldm=LdmSettings(resolution=32, device="cpu"), generation=GenerationSettings(**values))


@dataclasses.dataclass
class Bench:
    """A source, a drawer's folder, and short words for what tests do."""

    root: Path
    data: Path
    adapter: Path

    def generate(self, name="out", images=17, seed=1, workers=1, store=None, **generation) -> Path:
        out, settings = self.root / name, make_settings(**generation)
        generate(self.data, "stub", self.adapter, out, images, seed, settings, workers, LOADER, store)
        return out

    def behave(self, **behaviour) -> None:
        (self.adapter / "behaviour.json").write_text(json.dumps(behaviour))

    def drawn(self) -> list[int]:
        """Item numbers in the order in which they were drawn, since the last call."""
        log = self.adapter / "drawn.log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [int(word) for line in lines for word in line.split()[:-1]]


@pytest.fixture
def bench(tmp_path) -> Bench:
    (tmp_path / "adapter").mkdir()
    return Bench(tmp_path, write_source(tmp_path / "data"), tmp_path / "adapter")


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory) -> Path:
    """An unbroken run of 17 items: what every broken one must end in."""
    root = tmp_path_factory.mktemp("unbroken")
    (root / "adapter").mkdir()
    return Bench(root, write_source(root / "data"), root / "adapter").generate()


def result(out: Path) -> dict[str, str]:
    """sha256 of every file that a user gets."""
    files = [out / "annotations.json", out / "manifest.json", *sorted((out / "images").iterdir())]
    return {str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def within(seconds: float, function, *args, **kwargs):
    """What the call gives or raises; TimeoutError where it takes longer. Nobody waits for a call that hangs."""
    outcome: Future = Future()

    def call() -> None:
        try:
            outcome.set_result(function(*args, **kwargs))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return outcome.result(seconds)
