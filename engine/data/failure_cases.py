"""Scenes of the embedded world on which labels read off raw cross-attention maps go wrong, with their exact boxes.

The four cases are those that DiffusionEngine (arXiv 2309.03893) reports of labellers that threshold the attention
between pixels and words. Every case is a dataset folder with a test split whose captions are the prompts; an image's
`subject` is the class that its case is about.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from engine.data.dataset import Annotation, Category, ImageRecord, write_dataset
from engine.data.world import (
    CLASSES,
    COLOURS,
    OVERSAMPLE,
    PLACES,
    SIZE,
    Scene,
    box_of,
    compose_caption,
    draw_background,
    draw_distractors,
    finish_scene,
    render_object,
    render_scene,
)

# Between the diffusion model's scenes (from 10 million) and those of datasets (from 100 million).
FIRST_SEED = 60_000_000
LAST_SEED = FIRST_SEED + 10_000_000  # of all cases, not included
_SEEDS_A_SCENE = 50  # a scene may be drawn again until it shows its case
_MIN_PART = 0.25  # share of an object's visible pixels that lies on either side of what splits it


@dataclass(frozen=True)
class FailureScene:
    """One scene of a case; its caption is the prompt. subject: the class that the case is about; masks: the visible
    pixels of the objects, bool, in the scene's order, OVERSAMPLE times as fine as the image (empty where the case is
    made by the prompt alone)."""

    scene: Scene
    subject: str
    masks: tuple[np.ndarray, ...] = ()


def touching(seed: int) -> FailureScene | None:
    """Two objects of one class side by side, the nearer hiding a little of the other; the prompt names both."""
    rng = np.random.default_rng(seed)
    place, image = _ground(rng)
    class_name = str(rng.choice(CLASSES))
    names = [(class_name, str(rng.choice(list(COLOURS)))) for _ in range(2)]
    radii, shapes = rng.uniform(9, 13.5, 2), rng.integers(2**32, size=2)
    direction = rng.choice([-1.0, 1.0]) * np.array([np.cos(a := rng.uniform(-0.9, 0.9)), np.sin(a)])

    def draw(distance: float, middle: np.ndarray) -> list[tuple[Image.Image, np.ndarray]]:
        return [
            render_object(np.random.default_rng(shape), *name, radius, middle + side * direction * distance / 2)
            for name, radius, shape, side in zip(names, radii, shapes, (-1, 1), strict=True)
        ]

    apart, together, centre = 45.0, 0.0, np.full(2, SIZE / 2)
    for _ in range(7):  # halving: the widest distance at which the two still meet
        middle = (apart + together) / 2
        (_, first), (_, second) = draw(middle, centre)
        apart, together = (apart, middle) if (first & second).any() else (middle, together)
    distance = together - rng.uniform(0, 1.5)
    layers = draw(distance, centre)
    x, y, width, height = box_of(layers[0][1] | layers[1][1])
    low, high = np.array([x, y]), SIZE - np.array([x + width, y + height])  # room before and behind the two
    if min(*low, *high) < 1:
        return None  # cut off by the border
    layers = draw(distance, centre + rng.uniform(1 - low, high - 1))
    for layer, mask in layers:
        image.paste(layer, mask=Image.fromarray(mask))
    masks = [layers[0][1] & ~layers[1][1], layers[1][1]]
    whole = ndimage.label(masks[0] | masks[1])[1] == 1 and ndimage.label(masks[0])[1] == 1
    if not whole or masks[0].sum() < 0.8 * layers[0][1].sum():
        return None
    return FailureScene(finish_scene(image, names, masks, place), class_name, tuple(masks))


def parts(seed: int) -> FailureScene | None:
    """One object behind a post that splits what is seen of it; its truth is one box around all of its parts."""
    rng = np.random.default_rng(seed)
    place, image = _ground(rng)
    name = (str(rng.choice(CLASSES)), str(rng.choice(list(COLOURS))))
    radius = rng.uniform(14, 20)
    centre = rng.uniform(radius + 3, SIZE - radius - 3, 2)
    layer, mask = render_object(rng, *name, radius, centre)
    image.paste(layer, mask=Image.fromarray(mask))
    _, _, width, height = box_of(mask)
    angle = rng.normal(0, 0.15) + (np.pi / 2 if height > width else 0)
    along, across = np.array([-np.sin(angle), np.cos(angle)]), np.array([np.cos(angle), np.sin(angle)])
    middle = centre + across * rng.uniform(-0.15, 0.15) * 2 * radius
    half = across * rng.uniform(3, 5)
    corners = [middle + 2 * SIZE * s * along + t * half for s, t in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    polygon = [tuple(corner * OVERSAMPLE) for corner in corners]
    grey = np.clip(rng.uniform(70, 200) + rng.normal(0, 12, 3), 0, 255)
    ImageDraw.Draw(image).polygon(polygon, fill=tuple(int(v) for v in grey))
    post = Image.new("1", image.size)
    ImageDraw.Draw(post).polygon(polygon, fill=1)
    visible = mask & ~np.asarray(post)
    rows, columns = np.nonzero(visible)
    beyond = np.mean((np.stack([columns, rows], axis=1) / OVERSAMPLE - middle) @ across > 0) if rows.size else 0.0
    if min(beyond, 1 - beyond) < _MIN_PART:
        return None
    return FailureScene(finish_scene(image, [name], [visible], place), name[0], (visible,))


def not_drawn(seed: int) -> FailureScene | None:
    """A scene as any other, whose prompt names one more class than it shows."""
    scene, rng = render_scene(seed), np.random.default_rng([seed, 1])
    names = [(item.class_name, item.colour) for item in scene.objects]
    subject = str(rng.choice([name for name in CLASSES if name not in {shown for shown, _ in names}]))
    names.insert(int(rng.integers(len(names) + 1)), (subject, str(rng.choice(list(COLOURS)))))
    return FailureScene(dataclasses.replace(scene, caption=compose_caption(names, scene.place)), subject)


def not_prompted(seed: int) -> FailureScene | None:
    """A scene of several classes, whose prompt leaves all objects of one of them out."""
    scene, rng = render_scene(seed), np.random.default_rng([seed, 1])
    shown = sorted({item.class_name for item in scene.objects})
    if len(shown) < 2:
        return None
    subject = str(rng.choice(shown))
    names = [(item.class_name, item.colour) for item in scene.objects if item.class_name != subject]
    return FailureScene(dataclasses.replace(scene, caption=compose_caption(names, scene.place)), subject)


CASES: dict[str, Callable[[int], FailureScene | None]] = {
    "touching": touching,
    "parts": parts,
    "not_drawn": not_drawn,
    "not_prompted": not_prompted,
}


def render_case(case: str, index: int) -> FailureScene:
    """The scene `index` (from 0, below 50,000) of a case: the same index gives the same pixels, boxes and words."""
    first = FIRST_SEED + list(CASES).index(case) * 2_500_000 + index * _SEEDS_A_SCENE
    drawn = (CASES[case](seed) for seed in range(first, first + _SEEDS_A_SCENE))
    return next(scene for scene in drawn if scene is not None)


def write_failure_cases(out: Path, count: int) -> dict[str, Path]:
    """Write a dataset folder with `count` test images for every case below `out`. Returns case -> folder."""
    categories = [Category(i + 1, name) for i, name in enumerate(CLASSES)]
    ids = {category.name: category.id for category in categories}
    folders = {}
    for case in CASES:
        folder, images, annotations = out / case, [], []
        (folder / "images").mkdir(parents=True, exist_ok=True)
        for i in range(count):
            drawn = render_case(case, i)
            name = f"test_{i + 1:05d}.png"
            drawn.scene.image.save(folder / "images" / name)
            extra = {"caption": drawn.scene.caption, "subject": drawn.subject}
            images.append(ImageRecord(i + 1, name, SIZE, SIZE, extra))
            for item in drawn.scene.objects:
                number, category = len(annotations) + 1, ids[item.class_name]
                annotations.append(Annotation(number, i + 1, category, item.box_xywh, item.visible_area, 0, {}))
        write_dataset(folder, "test", images, annotations, categories)
        folders[case] = folder
    return folders


def _ground(rng: np.random.Generator) -> tuple[str, Image.Image]:
    place = str(rng.choice(list(PLACES)))
    image = draw_background(rng, place)
    draw_distractors(rng, image)
    return place, image
