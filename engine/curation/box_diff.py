"""Which boxes a person edited: what is shown now against what was loaded. Pure rules, no files and no database."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from engine.curation.edits import EditedBox, ImageEdits, box_problem
from engine.data.coco_checks import EDGE_TOLERANCE, is_number
from engine.data.dataset import Annotation, Dataset, ImageRecord
from engine.errors import DatasetError

STILL = 0.01  # pixels by which an untouched box may seem to have moved, from pixels to shares of the sides and back
_DIGITS = 3  # of a pixel in an edited box
_LISTED = 10


@dataclass(frozen=True)
class ShownBox:
    """A box in the App.

    Attributes:
        key: the App's own id of it, which stays when a person moves it or changes its class.
        category: name of its class; None where a person gave it none.
        bbox_relative: x, y, width, height as shares of the image's sides.
        annotation_id: in annotations.json, of a box as it was loaded.
    """

    key: str
    category: str | None
    bbox_relative: tuple
    iscrowd: bool = False
    annotation_id: int | None = None


@dataclass(frozen=True)
class ShownBoxes:
    """One image's boxes: `raw` as they were generated, `now` as they are shown."""

    image_id: int
    raw: tuple[ShownBox, ...]
    now: tuple[ShownBox, ...]


def diff_boxes(dataset: Dataset, shown: Iterable[ShownBoxes]) -> dict[int, ImageEdits]:
    """Image id -> edits, of the images whose boxes are not as they were generated.

    Added boxes get ids above all of the dataset's, in the order of the images. Equal states give equal edits.

    Raises:
        DatasetError: an edited box is not inside its image, below a pixel, or of no class; one line for each.
    """
    images = {image.id: image for image in dataset.images}
    classes = {category.name: category.id for category in dataset.categories}
    names = {category.id: category.name for category in dataset.categories}
    free = max((annotation.id for annotation in dataset.annotations), default=0) + 1
    edits, problems = {}, []
    for state in sorted(shown, key=lambda state: state.image_id):
        image = images[state.image_id]
        found = _edits_of(state, image, dataset.annotations_of(image.id), names, free)
        free += len(found.added)
        problems += _problems(found, image, classes)
        if found.added or found.removed or found.changed:
            edits[image.id] = found
    if problems:
        more = f"\n... and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise DatasetError(
            f"{dataset.folder}: {len(problems)} edited boxes cannot be labels; correct or delete them in the App and "
            "collect again. Nothing was collected.\n" + "\n".join(problems[:_LISTED]) + more
        )
    return edits


def sign(edits: Mapping[int, ImageEdits], earlier: Mapping[int, ImageEdits], reviewers: Mapping[int, str]) -> dict:
    """The edits with their reviewer: who made them before where they are the same, else the image's of `reviewers`."""
    signed = {}
    for image_id, edit in edits.items():
        before = earlier.get(image_id)
        known = before.reviewer if before is not None and _work(before) == _work(edit) else None
        signed[image_id] = replace(edit, reviewer=known or reviewers.get(image_id))
    return signed


def _work(edit: ImageEdits) -> tuple:
    """What was done, whatever ids the added boxes have."""
    added = tuple(replace(box, id=0) for box in edit.added)
    return added, tuple(sorted(edit.removed)), tuple(sorted(edit.changed, key=lambda box: box.id))


def _edits_of(
    state: ShownBoxes, image: ImageRecord, own: tuple[Annotation, ...], names: Mapping[int, str], free: int
) -> ImageEdits:
    loaded = {box.key: box for box in state.raw}
    annotations = {annotation.id: annotation for annotation in own}
    added, changed, seen = [], [], set()
    for box in state.now:
        before = None if box.key in seen else loaded.get(box.key)
        seen.add(box.key)
        if before is None:
            added.append(EditedBox(free + len(added), box.category or "", _pixels(box, image), int(box.iscrowd)))
            continue
        annotation = annotations[before.annotation_id]
        moved = _apart(box, before, image) > STILL
        bbox = _pixels(box, image) if moved else annotation.bbox_xywh
        if moved or box.category != names[annotation.category_id] or int(box.iscrowd) != annotation.iscrowd:
            changed.append(EditedBox(annotation.id, box.category or "", bbox, int(box.iscrowd)))
    removed = tuple(box.annotation_id for box in state.raw if box.key not in seen)
    return ImageEdits(image.id, tuple(added), removed, tuple(changed))


def _apart(first: ShownBox, second: ShownBox, image: ImageRecord) -> float:
    """Largest difference of two boxes in pixels; infinite where one of them is no box."""
    if not (_is_box(first) and _is_box(second)):
        return float("inf")
    sides = (image.width, image.height) * 2
    pairs = zip(first.bbox_relative, second.bbox_relative, sides, strict=True)
    return max(abs(a - b) * side for a, b, side in pairs)


def _is_box(box: ShownBox) -> bool:
    return len(box.bbox_relative) == 4 and all(is_number(value) for value in box.bbox_relative)


def _pixels(box: ShownBox, image: ImageRecord) -> tuple:
    """XYWH in pixels, what rounding lets stick out cut off; what is no box stays as it is, to be named."""
    if not _is_box(box):
        return box.bbox_relative
    x, y, width, height = box.bbox_relative
    left, right = _within(x * image.width, (x + width) * image.width, image.width)
    top, bottom = _within(y * image.height, (y + height) * image.height, image.height)
    return tuple(round(value, _DIGITS) for value in (left, top, right - left, bottom - top))


def _within(low: float, high: float, side: int) -> tuple[float, float]:
    return (
        0.0 if -EDGE_TOLERANCE <= low < 0 else low,
        float(side) if side < high <= side + EDGE_TOLERANCE else high,
    )


def _problems(edit: ImageEdits, image: ImageRecord, classes: Mapping[str, int]) -> Iterator[str]:
    for what, boxes in (("a new box", edit.added), ("annotation", edit.changed)):
        for box in boxes:
            problem = box_problem(box, image, classes)
            if problem:
                named = what if what == "a new box" else f"{what} {box.id}"
                yield f"image {image.id} ({image.file_name}): {named} {problem}"
