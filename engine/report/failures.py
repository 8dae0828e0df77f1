"""Test images on which the two arms of the verdict differ most, each with the boxes of both detectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from engine.data.dataset import Dataset
from engine.evaluation.per_image import Shown, shown_boxes
from engine.report.gallery import SHORT_EDGE, data_uri, reduced
from engine.report.pictures import draw_boxes

FOUND, WRONG = "#009e73", "#d55e00"  # told apart by most colour-blind people


@dataclass(frozen=True)
class ChangedImage:
    """One test image. better: whether the treatment gains on it; before, after: the picture as a data URI with the
    boxes of the baseline and of the treatment; found: objects that each of them finds, of `objects`."""

    better: bool
    before: str
    after: str
    file_name: str
    seed: int
    objects: int
    found: tuple[int, int]


def changed_images(
    changes: Mapping, test: Dataset, baseline: Mapping[int, Sequence], treatment: Mapping[int, Sequence]
) -> list[ChangedImage]:
    """The images that `largest_changes` chose, drawn. baseline, treatment: detections by seed.

    Raises DatasetError for a picture that cannot be read.
    """
    images = {image.id: image for image in test.images}
    names = {category.id: category.name for category in test.categories}
    shown = []
    for word in ("better", "worse"):
        for entry in changes[word]:
            image, seed = images[entry["image_id"]], entry["seed"]
            picture = test.load(image)
            before, after = (
                _drawn(picture, shown_boxes(test, image.id, arm[seed]), names) for arm in (baseline, treatment)
            )
            found = tuple(entry["found"])
            shown.append(ChangedImage(word == "better", before, after, image.file_name, seed, entry["objects"], found))
    return shown


def _drawn(picture: Image.Image, shown: Shown, names: Mapping[int, str]) -> str:
    boxes = [*shown.wrong, *shown.found]
    drawn = draw_boxes(
        picture,
        [box["bbox"] for box in boxes],
        [names[box["category_id"]] for box in boxes],
        [box["score"] for box in boxes],
        outlines=[WRONG] * len(shown.wrong) + [FOUND] * len(shown.found),
        short_edge=SHORT_EDGE,
        ignored_xywh=[missed.bbox_xywh for missed in shown.missed],
    )
    return data_uri(reduced(drawn))
