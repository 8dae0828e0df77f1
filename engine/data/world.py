"""The embedded world: small synthetic scenes rendered from a seed, with exact boxes, masks and captions.

It exists so that every part of the engine can be trained, run and tested where no weights and no
datasets can be fetched. It is synthetic and says so; results on it are results about the engine, not
about photographs.

A scene is a background place, a few small distractors, and one to four objects of six classes. Objects
vary in colour, proportions, rotation, mirror, size and occlusion, so that a class is a shape made of
parts and not a colour or a texture.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from engine.data.segmentation import encode_mask

CLASSES = ("house", "car", "tree", "boat", "fish", "mushroom")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 55, 50),
    "orange": (235, 140, 45),
    "yellow": (235, 210, 70),
    "green": (50, 130, 60),
    "blue": (50, 90, 190),
    "purple": (130, 70, 160),
    "white": (240, 240, 240),
    "brown": (120, 80, 50),
}
# place -> colours of the upper and lower band
PLACES: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "meadow": ((170, 205, 230), (130, 175, 95)),
    "desert": ((235, 215, 170), (215, 180, 120)),
    "sea": ((190, 215, 230), (95, 155, 190)),
    "snow": ((200, 210, 225), (225, 230, 235)),
    "dusk": ((115, 95, 140), (90, 85, 105)),
}
SIZE = 64  # pixels, width and height
OVERSAMPLE = 4
_MIN_VISIBLE = 0.6  # an object less visible than this is placed again


@dataclass(frozen=True)
class SceneObject:
    """One object: class name, colour name, tight box of its visible pixels (XYWH, pixels), their count, and, as counts
    of a compressed COCO RLE, the pixels of the picture that they cover by more than half."""

    class_name: str
    colour: str
    box_xywh: tuple[float, float, float, float]
    visible_area: float
    mask_counts: str


@dataclass(frozen=True)
class Scene:
    """A rendered scene: RGB image of SIZE x SIZE, its objects from back to front, its place and caption."""

    image: Image.Image
    objects: tuple[SceneObject, ...]
    place: str
    caption: str


Part = tuple[np.ndarray, str]  # (n, 2) polygon in object units (x right, y down, about [-1, 1]), role of its colour


def _rect(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _ellipse(cx: float, cy: float, rx: float, ry: float, start: float = 0.0, stop: float = 360.0) -> np.ndarray:
    angles = np.radians(np.linspace(start, stop, 28))
    return np.stack([cx + rx * np.cos(angles), cy + ry * np.sin(angles)], axis=1)


def _house(rng: np.random.Generator) -> list[Part]:
    eave = rng.uniform(0.0, 0.2)
    door = rng.uniform(-0.35, 0.25)
    return [
        (_rect(-0.75, -0.1, 0.75, 0.9), "main"),
        (np.array([(-0.85 - eave, -0.08), (0.0, -0.95), (0.85 + eave, -0.08)]), "second"),
        (_rect(door - 0.18, 0.3, door + 0.2, 0.9), "dark"),
    ]


def _car(rng: np.random.Generator) -> list[Part]:
    cabin = rng.uniform(0.35, 0.55)
    return [
        (np.array([(-0.55, -0.05), (-cabin + 0.05, -0.5), (cabin - 0.05, -0.5), (0.6, -0.05)]), "glass"),
        (_rect(-1.0, -0.1, 1.0, 0.35), "main"),
        (_ellipse(-0.55, 0.38, 0.26, 0.26), "dark"),
        (_ellipse(0.55, 0.38, 0.26, 0.26), "dark"),
    ]


def _tree(rng: np.random.Generator) -> list[Part]:
    trunk = rng.uniform(0.12, 0.2)
    lobe = rng.uniform(0.42, 0.5)
    return [
        (_rect(-trunk, 0.1, trunk, 1.0), "dark"),
        (_ellipse(-0.35, 0.0, lobe, 0.42), "main"),
        (_ellipse(0.35, 0.0, lobe, 0.42), "main"),
        (_ellipse(0.0, -0.5, lobe + 0.05, 0.5), "main"),
    ]


def _boat(rng: np.random.Generator) -> list[Part]:
    tip = rng.uniform(-0.95, -0.75)
    return [
        (np.array([(-1.0, 0.35), (1.0, 0.35), (0.6, 0.85), (-0.6, 0.85)]), "main"),
        (_rect(-0.1, -0.9, 0.02, 0.4), "dark"),
        (np.array([(0.08, tip), (0.85, 0.2), (0.08, 0.2)]), "second"),
    ]


def _fish(rng: np.random.Generator) -> list[Part]:
    height = rng.uniform(0.4, 0.55)
    return [
        (np.array([(0.45, 0.0), (1.0, -0.5), (0.88, 0.0), (1.0, 0.5)]), "second"),
        (_ellipse(-0.2, 0.0, 0.8, height), "main"),
        (_ellipse(-0.6, -0.12, 0.12, 0.12), "dark"),
    ]


def _mushroom(rng: np.random.Generator) -> list[Part]:
    stem = rng.uniform(0.2, 0.32)
    return [
        (_rect(-stem, -0.05, stem, 0.9), "pale"),
        (_ellipse(0.0, 0.0, 0.95, 0.85, 180, 360), "main"),
        (_ellipse(-0.4, -0.3, 0.15, 0.13), "pale"),
        (_ellipse(0.35, -0.4, 0.15, 0.13), "pale"),
    ]


_PARTS = {"house": _house, "car": _car, "tree": _tree, "boat": _boat, "fish": _fish, "mushroom": _mushroom}


def _place_points(points: np.ndarray, centre: np.ndarray, matrix: np.ndarray) -> list[tuple[float, float]]:
    return [tuple(p) for p in (points @ matrix.T + centre) * OVERSAMPLE]


def _jitter(rng: np.random.Generator, colour: Iterable[float], amount: float) -> tuple[int, int, int]:
    shift = rng.normal(0, amount, 3) + rng.normal(0, amount)
    return tuple(int(v) for v in np.clip(np.asarray(list(colour)) + shift, 0, 255))


def draw_background(rng: np.random.Generator, place: str) -> Image.Image:
    """Two bands with a soft horizon and faint low-frequency shading."""
    upper, lower = (np.array(_jitter(rng, c, 8), dtype=np.float32) for c in PLACES[place])
    horizon = rng.uniform(0.3, 0.6) * SIZE
    rows = np.clip((np.arange(SIZE) - horizon) / 3 + 0.5, 0, 1)[:, None, None]
    canvas = upper * (1 - rows) + lower * rows + np.zeros((SIZE, SIZE, 1), np.float32)
    coarse = Image.fromarray(rng.normal(0, 7, (5, 5)).astype(np.float32))
    canvas += np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC))[..., None]
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    return image.resize((SIZE * OVERSAMPLE,) * 2, Image.Resampling.BILINEAR)


def draw_distractors(rng: np.random.Generator, image: Image.Image) -> None:
    """Pebbles and posts: things that are drawn but belong to no class."""
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 4)):
        centre = rng.uniform(4, SIZE - 4, 2)
        colour = _jitter(rng, rng.uniform(70, 200) + rng.normal(0, 12, 3), 4)
        if rng.random() < 0.5:
            shape = _ellipse(0, 0, rng.uniform(2, 4.5), rng.uniform(1.5, 3))
        else:
            shape = _rect(-1, -rng.uniform(4, 7), 1, 4)
        draw.polygon(_place_points(shape, centre, np.eye(2)), fill=colour)


def render_object(
    rng: np.random.Generator, class_name: str, colour: str, radius: float, centre: np.ndarray
) -> tuple[Image.Image, np.ndarray]:
    """One object as an RGB layer and its boolean mask, both oversampled."""
    angle = np.radians(rng.normal(0, 10))
    stretch = np.exp(rng.normal(0, 0.1, 2))
    mirror = rng.choice([-1.0, 1.0])
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = rotation @ np.diag([radius * stretch[0] * mirror, radius * stretch[1]])
    second = rng.choice([c for c in COLOURS if c != colour])
    fills = {
        "main": _jitter(rng, COLOURS[colour], 10),
        "second": _jitter(rng, COLOURS[second], 10),
        "dark": _jitter(rng, (45, 40, 40), 8),
        "pale": _jitter(rng, (235, 225, 205), 8),
        "glass": _jitter(rng, (175, 205, 220), 8),
    }
    layer = Image.new("RGB", (SIZE * OVERSAMPLE,) * 2)
    mask = Image.new("1", layer.size)
    draw, draw_mask = ImageDraw.Draw(layer), ImageDraw.Draw(mask)
    for points, role in _PARTS[class_name](rng):
        polygon = _place_points(points, centre, matrix)
        draw.polygon(polygon, fill=fills[role])
        draw_mask.polygon(polygon, fill=1)
    return layer, np.asarray(mask)


def box_of(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Tight box of an oversampled mask: XYWH in pixels of the scene."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x0, y0, x1, y1 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return tuple(float(v) / OVERSAMPLE for v in (x0, y0, x1 - x0, y1 - y0))


def _mask_counts(mask: np.ndarray) -> str:
    share = mask.reshape(SIZE, OVERSAMPLE, SIZE, OVERSAMPLE).mean(axis=(1, 3))
    return encode_mask(share > 0.5)["counts"]


def compose_caption(names: Iterable[tuple[str, str]], place: str) -> str:
    """The words of a scene, from its objects' (class name, colour name)."""
    listed = " and ".join(f"a {colour} {class_name}" for class_name, colour in names) or "nothing"
    return f"{listed} in the {place}"


def finish_scene(
    image: Image.Image, names: Sequence[tuple[str, str]], masks: Sequence[np.ndarray], place: str
) -> Scene:
    """The scene of an oversampled picture, from its objects' (class name, colour name) and their visible masks."""
    objects = tuple(
        SceneObject(name, colour, box_of(mask), float(mask.sum()) / OVERSAMPLE**2, _mask_counts(mask))
        for (name, colour), mask in zip(names, masks, strict=True)
    )
    small = image.resize((SIZE, SIZE), Image.Resampling.BOX)
    return Scene(small, objects, place, compose_caption(names, place))


def render_scene(seed: int) -> Scene:
    """Draw the scene of `seed` (any non-negative integer): the same seed gives the same pixels and boxes."""
    rng = np.random.default_rng(seed)
    place = str(rng.choice(list(PLACES)))
    image = draw_background(rng, place)
    draw_distractors(rng, image)
    masks: list[np.ndarray] = []
    full_areas: list[int] = []
    names: list[tuple[str, str]] = []
    for _ in range(rng.choice([1, 2, 3, 4], p=[0.25, 0.4, 0.25, 0.1])):
        class_name, colour = str(rng.choice(CLASSES)), str(rng.choice(list(COLOURS)))
        for _attempt in range(8):
            radius = rng.uniform(9, 17)
            centre = rng.uniform(radius * 0.8, SIZE - radius * 0.8, 2)
            layer, mask = render_object(rng, class_name, colour, radius, centre)
            hidden = [(m & ~mask).sum() / area for m, area in zip(masks, full_areas, strict=True)]
            if mask.any() and all(share >= _MIN_VISIBLE for share in hidden):
                image.paste(layer, mask=Image.fromarray(mask))
                masks = [m & ~mask for m in masks] + [mask]
                full_areas.append(int(mask.sum()))
                names.append((class_name, colour))
                break
    return finish_scene(image, names, masks, place)


# Scenes of datasets start here; the diffusion model is trained on other seeds (engine/ldm/pretrain.py).
