"""The three records of a detection dataset, as COCO has them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Category:
    """A class. `id` is the source's, from 1; ids may be sparse."""

    id: int
    name: str
    supercategory: str = ""


@dataclass(frozen=True)
class ImageRecord:
    """A picture of the dataset.

    `file_name` is relative to the folder's images/, with forward slashes. `width` and `height` are pixels of the
    upright picture (turned by its EXIF orientation), the frame of every box. `extra` holds all other keys of the
    json entry: caption, de, ...
    """

    id: int
    file_name: str
    width: int
    height: int
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Annotation:
    """A labelled box: (x, y, width, height) in pixels of the upright picture, `area` in square pixels.

    `iscrowd` is 1 for a region that is neither object nor background. `extra` holds all other keys: score,
    segmentation, ...
    """

    id: int
    image_id: int
    category_id: int
    bbox_xywh: tuple[float, float, float, float]
    area: float
    iscrowd: int
    extra: dict = field(default_factory=dict)
