"""What tests of the nights share: scenes of the embedded world, a stand-in for the drawer, tiny settings."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAND_IN = ROOT / "tests" / "engine" / "generation"
sys.path.append(str(STAND_IN))

from engine.config import load_settings  # noqa: E402
from engine.data.dataset import read_dataset, write_dataset  # noqa: E402
from engine.data.records import Category  # noqa: E402
from engine.data.world_folder import write_world  # noqa: E402
from engine.evaluation.results import SCORES  # noqa: E402
from engine.generation.plan_file import load_plan  # noqa: E402
from tasks.night_file import Night, Nights  # noqa: E402

KNOWN = {1: 2, 2: 5, 3: 9}  # classes of the world -> the ids that the stand-in gives its boxes
TINY = [
    "ldm.device=cpu", "ldm.resolution=64", "generation.shard_size=4", "generation.batch_size=2",
    "detector.steps=2", "detector.batch_size=2", "detector.width=32", "detector.convs=1",
    "compare.seeds=2", "compare.bootstrap=20", "review.min_spread=0", "review.box_count_factor=0",
    "scale_up.images_max=6", "scale_up.disk_gb=0", "scale_up.tolerance=1.0",
]  # fmt: skip


@dataclasses.dataclass
class NightWorkspace:
    """A dataset in data/, the stand-in's folder adapter/, and nights/."""

    root: Path

    @property
    def nights(self) -> Nights:
        return Nights(self.root / "nights")

    def night(self, number: int) -> Night:
        return self.nights.read(number)

    def settings(self, *overrides: str):
        return load_settings(None, [*TINY, *overrides])

    def parameters(self, *overrides: str, **options) -> dict:
        folders = {name: str(self.root / name) for name in ("data", "adapter", "nights", "comparison")}
        return {**folders, "ldm": "world", "fiftyone": "off", "overrides": [*TINY, *overrides], **options}

    def run(self, *overrides: str, **options) -> dict:
        from flows.scale_up import scale_up

        return scale_up(**self.parameters(*overrides, **options))

    def behave(self, **behaviour) -> None:
        (self.root / "adapter" / "behaviour.json").write_text(json.dumps(behaviour))

    def drawn(self) -> int:
        """Items drawn since the last call."""
        log = self.root / "adapter" / "drawn.log"
        count = sum(len(line.split()) - 1 for line in log.read_text().splitlines()) if log.exists() else 0
        log.unlink(missing_ok=True)
        return count

    def repeat(self, number: int, items: int) -> list[int]:
        """Have the next night draw again what the first images of a night's pool show. Returns their seeds."""
        pool = read_dataset(self.nights.folder_of(Night(number)) / "pool", "annotations")
        seeds = [image.extra["de"]["seed"] for image in pool.images[:items]]
        self.behave(repeat={str(item): seed for item, seed in enumerate(seeds, start=1)})
        return seeds

    def weak_class(self) -> Category:
        """A class that only some images hold, made the one that the comparison beside the nights finds weak."""
        data = read_dataset(self.root / "data", "train")
        pictures = {c: len({b.image_id for b in data.annotations if b.category_id == c.id}) for c in data.categories}
        weak = min((c for c, count in pictures.items() if 0 < count < len(data.images)), key=pictures.get)
        write_weak_comparison(self.root / "comparison", [c.name for c in data.categories], weak.name)
        return weak

    def sources_of(self, number: int) -> Counter:
        """How often each source image serves in a night's plan."""
        plan = load_plan(self.nights.folder_of(Night(number)) / "generated")
        return Counter(item.source_image_id for item in plan.items)

    def share_of(self, number: int, class_id: int) -> float:
        """Share of a night's planned images whose source holds the class."""
        plan, train = (
            load_plan(self.nights.folder_of(Night(number)) / "generated"),
            read_dataset(self.root / "data", "train"),
        )
        held = {box.image_id for box in train.annotations if box.category_id == class_id}
        return sum(item.source_image_id in held for item in plan.items) / plan.images

    def promoted(self) -> dict:
        return json.loads((self.nights.folder / "promoted.json").read_text())

    def accepted(self, *numbers: int) -> int:
        return sum(self.night(number).review["accepted"] for number in numbers)


def write_weak_comparison(folder: Path, names: list[str], weak: str) -> None:
    """A results.json in which real images alone teach one class badly, and medium objects best: on validation images.
    On test images all are alike."""
    scores = {score: [0.4, 0.5] for score in SCORES}
    arm = scores | {"loss_curve": [[], []], "seconds": [1.0, 1.0], "per_class": {name: [0.5, 0.5] for name in names}}
    per_class = {name: [0.1, 0.1] if name == weak else [0.8, 0.8] for name in names}
    arm["validation"] = scores | {"map_medium": [0.8, 1.0], "per_class": per_class}
    delta = {"mean": 0.0, "ci95": [-0.1, 0.1], "verdict": "cannot tell", "baseline": "real", "treatment": "real+de"}
    parts = {name: {} for name in ("settings", "versions", "data", "generated", "adapter")}
    arms = {"arms": {"real": arm, "real+de": arm}, "baseline": "real", "delta": delta, "deltas": {"real+de": delta}}
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({**parts, **arms, "seeds": [0, 1]}))


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> NightWorkspace:
    import tasks.generate

    monkeypatch.chdir(tmp_path)  # no params.yaml, no dvc.yaml
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(STAND_IN)]))
    monkeypatch.delenv("DE_WEBHOOK", raising=False)
    monkeypatch.setattr(tasks.generate, "LOADER", "stub_drawer:load")
    monkeypatch.setattr(tasks.generate.draw_shard, "retry_delay_seconds", 0.1)
    (tmp_path / "adapter").mkdir()
    write_world(tmp_path / "data", 8, 2, 4)
    for split in ("train", "val", "test"):
        world = read_dataset(tmp_path / "data", split)
        boxes = [
            dataclasses.replace(box, category_id=KNOWN[box.category_id])
            for box in world.annotations
            if box.category_id in KNOWN
        ]
        names = [Category(KNOWN[c.id], c.name) for c in world.categories if c.id in KNOWN]
        write_dataset(tmp_path / "data", split, world.images, boxes, names)
    return NightWorkspace(tmp_path)
