"""Instance masks as COCO writes them: polygons, or run-length encodings (RLE) with counts as a list or as a string.

pycocotools trusts what it is given: runs of a wrong total come back as whatever lay in memory, and one coordinate of a
million kills the process. So everything is checked before it gets there.
"""

from __future__ import annotations

import itertools
import reprlib

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from engine.data.coco_checks import is_number


def segmentation_rle(segmentation: object, picture: tuple[int, int], size: tuple[int, int]) -> dict | None:
    """A segmentation's pixels, drawn at another size.

    Args:
        segmentation: COCO's, of a picture of `picture` (width, height) pixels.
        size: (width, height) to draw it at.

    Returns:
        A compressed RLE as pycocotools has it, or None for a segmentation that says nothing (None, [] or {}).

    Raises:
        ValueError: it is malformed; the text says why.
    """
    if not segmentation and isinstance(segmentation, list | dict | None):
        return None
    if isinstance(segmentation, list):
        return _from_polygons(segmentation, picture, size)
    if isinstance(segmentation, dict):
        return _from_runs(segmentation, picture, size)
    raise ValueError(f"{reprlib.repr(segmentation)} is neither a list of polygons nor an RLE")


def encode_mask(mask: np.ndarray) -> dict:
    """A mask (H, W) bool as an RLE that json can hold: {"size": [H, W], "counts": text}."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_masks(rles: list[dict], size: tuple[int, int]) -> np.ndarray:
    """RLEs of `size` (width, height) -> masks (N, H, W) bool."""
    if not rles:
        return np.zeros((0, size[1], size[0]), dtype=bool)
    return coco_mask.decode(rles).transpose(2, 0, 1).astype(bool)


def _from_polygons(polygons: list, picture: tuple[int, int], size: tuple[int, int]) -> dict:
    drawn = []
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"polygon {reprlib.repr(polygon)} is no list of three or more x, y pairs")
        if not all(is_number(value) for value in polygon):
            raise ValueError(f"polygon {reprlib.repr(polygon)} holds something that is no finite number")
        points = np.asarray(polygon, dtype=float).reshape(-1, 2)
        if (points < -np.asarray(picture)).any() or (points > 2 * np.asarray(picture)).any():
            raise ValueError(
                f"polygon {reprlib.repr(polygon)} lies far out of its picture of {picture[0]} x {picture[1]}"
            )
        drawn.append((points * np.divide(size, picture)).ravel().tolist())
    return coco_mask.merge(coco_mask.frPyObjects(drawn, size[1], size[0]))


def _from_runs(rle: dict, picture: tuple[int, int], size: tuple[int, int]) -> dict:
    if rle.get("size") != [picture[1], picture[0]]:
        shown = reprlib.repr(rle.get("size"))
        raise ValueError(f"its RLE has the size {shown}, its picture [height, width] = {[picture[1], picture[0]]}")
    counts = rle.get("counts")
    runs = _parse(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        raise ValueError(f"the counts {reprlib.repr(counts)} of its RLE are no lengths of runs")
    if sum(runs) != picture[0] * picture[1]:
        raise ValueError(f"the runs of its RLE cover {sum(runs)} pixels, its picture has {picture[0] * picture[1]}")
    flat = np.repeat(np.arange(len(runs)) % 2, runs)  # column after column, outside first
    mask = Image.fromarray((flat.reshape(picture).T * 255).astype(np.uint8))
    if picture != size:
        shrink = picture[0] > size[0]
        mask = mask.resize(size, Image.Resampling.BOX if shrink else Image.Resampling.BILINEAR)
    return coco_mask.encode(np.asfortranarray(np.asarray(mask) >= 128, dtype=np.uint8))


def _parse(text: str) -> list[int]:
    """Runs of a compressed RLE: five bits a character and one that says whether more follow, lowest bits first, signed;
    from the fourth on each is the difference to the run two before (pycocotools' format)."""
    digits = [ord(character) - 48 for character in text]
    if not all(0 <= digit < 64 for digit in digits) or (digits and digits[-1] & 32):
        return [-1]
    runs: list[int] = []
    ends = [i + 1 for i, digit in enumerate(digits) if not digit & 32]
    for start, end in itertools.pairwise([0, *ends]):
        value = sum((digit & 31) << 5 * i for i, digit in enumerate(digits[start:end]))
        if digits[end - 1] & 16:
            value -= 1 << 5 * (end - start)
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs
