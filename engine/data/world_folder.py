"""The embedded world as a dataset folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tqdm import tqdm

from engine.data.dataset import Annotation, Category, ImageRecord, write_dataset
from engine.data.sources import UNLABELLED
from engine.data.world import CLASSES, SIZE, Scene, render_scene
from engine.data.world_domains import LOOKS, PAINT

CATEGORIES = [Category(number, name) for number, name in enumerate(CLASSES, start=1)]
FIRST_SCENE = 100_000_000


def write_world(
    out: Path, train: int, val: int, test: int, seed: int = 0, domain: str = PAINT, unlabelled: int = 0
) -> None:
    """Render a labelled dataset folder of the embedded world: disjoint scenes for train, val and test.

    Args:
        domain: how it looks, a key of `LOOKS`; the scenes of a seed are the same in each.
        unlabelled: so many scenes more to draw from, in unlabelled.json, without boxes or captions.
    """
    (out / "images").mkdir(parents=True, exist_ok=True)
    for part, (split, count) in enumerate({"train": train, "val": val, "test": test}.items()):
        bare = unlabelled if split == "train" else 0
        images, annotations = [], []
        for i in tqdm(range(count + bare), desc=f"world {split}", mininterval=2):
            scene = render_scene(FIRST_SCENE + seed * 3_000_000 + part * 1_000_000 + i)
            name = f"{split}_{i + 1:05d}.png"
            LOOKS[domain](scene.image, np.random.default_rng([seed, part, i])).save(out / "images" / name)
            images.append(ImageRecord(i + 1, name, SIZE, SIZE, {"caption": scene.caption} if i < count else {}))
            if i < count:
                annotations += _boxes(scene, i + 1, len(annotations) + 1)
        write_dataset(out, split, images[:count], annotations, CATEGORIES)
        if bare:
            write_dataset(out, UNLABELLED, images[count:], [], CATEGORIES)


def _boxes(scene: Scene, image_id: int, first_id: int) -> list[Annotation]:
    return [
        Annotation(
            first_id + place,
            image_id,
            CLASSES.index(item.class_name) + 1,
            item.box_xywh,
            item.visible_area,
            0,
            {"segmentation": {"size": [SIZE, SIZE], "counts": item.mask_counts}},
        )
        for place, item in enumerate(scene.objects)
    ]
