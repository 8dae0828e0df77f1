"""A tiny real dataset of rendered scenes and a generated one beside it, each image with a known fault or none.

Shared by the tests of engine.curation and of tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from engine.data.dataset import Annotation, Category, Dataset, ImageRecord, read_dataset, write_dataset
from engine.data.world import CLASSES, render_scene

CATEGORIES = [Category(n, name) for n, name in enumerate(CLASSES, start=1)]


@dataclass
class Folders:
    """A real folder (train, val, test: scene seeds 0-3, 10-12, 20-22) and an empty generated one."""

    real: Path
    generated: Path

    def add_split(self, split: str, seeds) -> None:
        """Render scenes into the real folder; image ids count from 1 in each split."""
        images, annotations = [], []
        for image_id, seed in enumerate(seeds, start=1):
            scene, name = render_scene(seed), f"{split}_{seed}.png"
            (self.real / "images").mkdir(parents=True, exist_ok=True)
            scene.image.save(self.real / "images" / name)
            images.append(ImageRecord(image_id, name, *scene.image.size, {"caption": scene.caption}))
            annotations += [(image_id, thing.class_name, thing.box_xywh, {}) for thing in scene.objects]
        write_dataset(self.real, split, images, _numbered(annotations), CATEGORIES)

    def generate(self, pictures: list[Image.Image], sources: list[int | None], scores: list[list[float]]) -> Dataset:
        """Write pictures as generated images 1, 2, ...: one box per score, drawn from these train image ids."""
        (self.generated / "images").mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for image_id, (picture, source, own) in enumerate(zip(pictures, sources, scores, strict=True), start=1):
            picture.save(self.generated / "images" / f"{image_id:06d}.png")
            extra = {} if source is None else {"de": provenance(image_id, source)}
            images.append(ImageRecord(image_id, f"{image_id:06d}.png", *picture.size, extra))
            annotations += [(image_id, CLASSES[n % 6], (4 + n, 8, 16, 20), {"score": s}) for n, s in enumerate(own)]
        write_dataset(self.generated, "annotations", images, _numbered(annotations), CATEGORIES)
        return read_dataset(self.generated, "annotations")

    def splits(self) -> dict[str, Dataset]:
        return {split: read_dataset(self.real, split) for split in ("train", "val", "test")}


def provenance(image_id: int, source: int) -> dict:
    return {
        "item": image_id,
        "source_image_id": source,
        "seed": 2**63 + image_id,
        "strength": 0.5,
        "guidance_scale": 2.0,
        "eta": 0.25,
        "prompt": 'a "boat"; touch PWNED; ${x} \n ../',
        "negative_prompt": "",
        "mode": "img2img",
        "ldm": {"id": "world"},
        "adapter": {"sha256": "0" * 64},
        "plan": "0" * 64,
    }


def _numbered(rows) -> list[Annotation]:
    ids = {category.name: category.id for category in CATEGORIES}
    return [
        Annotation(n, image_id, ids[name], tuple(float(v) for v in box), float(box[2] * box[3]), 0, extra)
        for n, (image_id, name, box, extra) in enumerate(rows, start=1)
    ]


@pytest.fixture
def folders(tmp_path) -> Folders:
    made = Folders(tmp_path / "real", tmp_path / "generated")
    made.add_split("train", range(0, 4))
    made.add_split("val", range(10, 13))
    made.add_split("test", range(20, 23))
    return made
