"""The rules by which an import puts a source right. Every case is counted in the report; nothing else is changed.

Frame of boxes on EXIF-turned pictures: the declared size tells it, where the turn swaps width and height. Where it
cannot (half turns, mirrors, squares, no declared size), the frame of most telling pictures of the source counts;
without any, the boxes are upright, as browsers and today's labelling tools show the picture. Fractions (YOLO) are
upright.

Declared size wrong: the decoded one counts and boxes stay as they are. If they then do not fit the picture, they were
drawn on a copy of another size, and the picture is left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from engine.data.coco_checks import EDGE_TOLERANCE, id_problem, is_number
from engine.data.images import ImageInfo
from engine.data.import_report import Notes
from engine.data.import_source import Source, SourceBox, SourceImage
from engine.data.records import Category

MIN_SIDE = 0.01  # pixels; what COCO's own rounding keeps. A smaller box has no area
_HELD_OUT_FIRST = ("test", "val", "train")
XYWH = tuple[float, float, float, float]


def join_repeated(images: Iterable[SourceImage], notes: Notes) -> list[SourceImage]:
    """One entry for each file: repeated ones are joined, and a file in two splits stays in the held-out one."""
    kept: dict[str, SourceImage] = {}
    unusable: list[SourceImage] = []
    for image in images:
        if image.file is None or image.problem:
            unusable.append(image)
            continue
        real = os.path.realpath(image.file)
        first = kept.setdefault(real, image)
        if first is image:
            continue
        if first.split == image.split:
            known = {(box.category, repr(box.bbox)) for box in first.boxes}
            first.boxes += [box for box in image.boxes if (box.category, repr(box.bbox)) not in known]
            notes.add("images_repeated", image.where, f"the same picture as {first.where}")
            continue
        winner, loser = sorted((first, image), key=lambda i: _HELD_OUT_FIRST.index(i.split))
        kept[real] = winner
        notes.add("images_in_two_splits", loser.where, f"kept as {winner.where} in {winner.split}")
    return [*unusable, *kept.values()]


def assign_ids(wanted: Sequence[object]) -> list[int]:
    """Each wanted id where it is usable and not taken before, else the lowest free number from 1."""
    taken: set[int] = set()
    keeps = []
    for value in wanted:
        keeps.append(id_problem(value) is None and value not in taken)
        if keeps[-1]:
            taken.add(value)
    ids, free = [], 1
    for value, keep in zip(wanted, keeps, strict=True):
        if not keep:
            while free in taken:
                free += 1
            taken.add(free)
        ids.append(value if keep else free)
    return ids


def settle_categories(source: Source, notes: Notes) -> tuple[list[Category], dict[object, int]]:
    """The classes of the dataset, and the category id that each key of the source stands for."""
    by_name: dict[str, list[object]] = {}
    for key, entry in source.categories.items():
        name = entry.name.strip() if isinstance(entry.name, str) else ""
        by_name.setdefault(name or f"class_{entry.id}", []).append(key)
    firsts = [source.categories[keys[0]] for keys in by_name.values()]
    ids = assign_ids([entry.id for entry in firsts])
    categories, id_of = [], {}
    for (name, keys), entry, number in zip(by_name.items(), firsts, ids, strict=True):
        categories.append(Category(number, name, entry.supercategory if isinstance(entry.supercategory, str) else ""))
        id_of.update(dict.fromkeys(keys, number))
        if number != entry.id:
            notes.add("category_ids_renumbered", name, f"{entry.id!r} became {number}")
        for key in keys[1:]:
            if source.categories[key].id != entry.id:  # the same class in each split's json is no news
                notes.add("categories_merged", name, f"{source.categories[key].id!r} became {number}")
    return categories, id_of


def settle_frames(pictures: Sequence[tuple[SourceImage, ImageInfo]], exif: str, notes: Notes) -> list[str]:
    """For each picture "upright" or "stored": the frame in which the source gives its boxes."""
    told = [_told_frame(image, info) for image, info in pictures]
    votes = [frame for frame, (_, info) in zip(told, pictures, strict=True) if info.orientation != 1 and frame]
    usual = "stored" if votes.count("stored") > votes.count("upright") else "upright"
    frames = []
    for frame, (image, info) in zip(told, pictures, strict=True):
        if info.orientation != 1 and exif != "auto":
            frame = exif
        elif frame is None:
            frame = usual
            notes.add(f"exif_assumed_{usual}", image.where, f"orientation {info.orientation}")
        frames.append(frame)
    return frames


def _told_frame(image: SourceImage, info: ImageInfo) -> str | None:
    if info.orientation == 1 or not image.boxes or all(box.fractions for box in image.boxes):
        return "upright"
    if info.stored_size != (info.width, info.height):
        if image.declared_size == info.stored_size:
            return "stored"
        if image.declared_size == (info.width, info.height):
            return "upright"
    return None


def settle_size(image: SourceImage, info: ImageInfo, frame: str, notes: Notes) -> str | None:
    """Compare the declared with the decoded size; why the picture cannot be used, or None."""
    real = info.stored_size if frame == "stored" else (info.width, info.height)
    if frame == "stored":
        notes.add("exif_turned", image.where, f"orientation {info.orientation}, now {info.width} x {info.height}")
    declared = image.declared_size
    if declared == real or (declared is None and image.boxes and all(box.fractions for box in image.boxes)):
        return None
    is_size = declared is not None and all(is_number(side) and side > 0 for side in declared)
    told = " x ".join(repr(side)[:20] for side in declared or ("nothing",))
    what = f"declared {told}, decoded {real[0]} x {real[1]}"
    if is_size and not all(_fits(box, real) for box in image.boxes):
        return f"{what}, and its boxes do not fit: they were drawn on a copy of another size"
    notes.add("sizes_corrected", image.where, what)
    return None


def _fits(box: SourceBox, size: tuple[int, int]) -> bool:
    if box.fractions or not _is_box(box.bbox):
        return True
    x, y, w, h = box.bbox
    return x > -1 and y > -1 and x + w < size[0] + 1 and y + h < size[1] + 1


def _is_box(bbox: object) -> bool:
    return isinstance(bbox, (list, tuple)) and len(bbox) == 4 and all(is_number(value) for value in bbox)


def settle_box(box: SourceBox, info: ImageInfo, frame: str, notes: Notes) -> XYWH | None:
    """The box in pixels of the upright picture, inside it, or None when it is left out."""
    if not _is_box(box.bbox):
        notes.add("boxes_malformed", box.where, repr(box.bbox)[:120])
        return None
    x, y, w, h = box.bbox
    if box.fractions:
        x, y, w, h = x * info.width, y * info.height, w * info.width, h * info.height
    if w < MIN_SIDE or h < MIN_SIDE:
        notes.add("boxes_zero_area", box.where, f"{w:g} x {h:g} at ({x:g}, {y:g})")
        return None
    if frame == "stored" and not box.fractions:
        x, y, w, h = turn_box((x, y, w, h), info)
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, info.width), min(y + h, info.height)
    if right - left < MIN_SIDE or bottom - top < MIN_SIDE:
        notes.add("boxes_outside", box.where, f"({x:g}, {y:g}, {w:g}, {h:g}) in {info.width} x {info.height}")
        return None
    overhang = max(-x, -y, x + w - info.width, y + h - info.height)
    if overhang <= 0:
        return x, y, w, h
    if overhang > EDGE_TOLERANCE:
        notes.add("boxes_clipped", box.where, f"({x:g}, {y:g}, {w:g}, {h:g}) in {info.width} x {info.height}")
    elif overhang > 1e-6:
        notes.count("boxes_trimmed")
    return left, top, right - left, bottom - top


def turn_box(bbox_xywh: XYWH, info: ImageInfo) -> XYWH:
    """A box of the stored frame in the upright frame, both XYWH in pixels."""
    x, y, w, h = bbox_xywh
    width, height = info.stored_size
    right, below = width - x - w, height - y - h
    return {
        1: (x, y, w, h),
        2: (right, y, w, h),
        3: (right, below, w, h),
        4: (x, below, w, h),
        5: (y, x, h, w),
        6: (below, x, h, w),
        7: (below, right, h, w),
        8: (y, right, h, w),
    }[info.orientation]
