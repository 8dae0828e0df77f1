import numpy as np
import pytest
from pycocotools import mask as coco_mask

from engine.data.segmentation import decode_masks, encode_mask, segmentation_rle

PICTURE = (40, 30)  # width, height


def disc() -> np.ndarray:
    rows, columns = np.mgrid[:30, :40]
    return (columns - 22.5) ** 2 / 150 + (rows - 14.5) ** 2 / 90 <= 1


def runs_of(mask: np.ndarray) -> list[int]:
    flat = np.concatenate([[False], mask.T.ravel()])
    edges = np.flatnonzero(np.diff(flat))
    return np.diff([0, *edges, mask.size]).tolist()


def polygon(mask: np.ndarray) -> list[float]:
    angles = np.linspace(0, 2 * np.pi, 60)
    return np.stack([23 + 150**0.5 * np.cos(angles), 15 + 90**0.5 * np.sin(angles)], axis=1).ravel().tolist()


@pytest.mark.parametrize("size", [PICTURE, (80, 60), (20, 15), (48, 16)])
def test_every_spelling_of_a_shape_gives_the_same_pixels_at_every_size(size):
    mask = disc()
    spellings = [encode_mask(mask), {"size": [30, 40], "counts": runs_of(mask)}, [polygon(mask)]]
    drawn = decode_masks([segmentation_rle(s, PICTURE, size) for s in spellings], size)
    assert drawn.shape == (3, size[1], size[0])
    assert np.array_equal(drawn[0], drawn[1])
    for mask_at in drawn:
        share = mask_at.mean() / mask.mean()
        assert 0.9 < share < 1.1
        where = np.argwhere(mask_at).mean(axis=0) + 0.5
        assert np.abs(where / (size[1], size[0]) - np.array([15 / 30, 23 / 40])).max() < 0.02


def test_compressed_counts_read_as_pycocotools_reads_them():
    rng = np.random.default_rng(0)
    for density in (0.0, 0.001, 0.5, 1.0):
        mask = rng.random((300, 500)) < density
        rle = encode_mask(mask)
        ours = decode_masks([segmentation_rle(rle, (500, 300), (500, 300))], (500, 300))[0]
        assert np.array_equal(ours, mask) and np.array_equal(coco_mask.decode(rle).astype(bool), mask)


def test_a_segmentation_that_says_nothing_is_none():
    assert [segmentation_rle(s, PICTURE, PICTURE) for s in (None, [], {})] == [None] * 3


@pytest.mark.parametrize(
    ("segmentation", "why"),
    [
        ([[1, 1, 5, 5]], "three or more"),
        ([[1, 1, 5, 5, 3]], "three or more"),
        ([1, 1, 5, 5, 3, 3], "three or more"),
        ([[1, 1, 5, 5, 3, float("nan")]], "no finite number"),
        ([[1, 1, 5, 5, 3, "4"]], "no finite number"),
        ([[1, 1, 1e9, 5, 3, 4]], "far out of its picture"),
        ({"size": [40, 30], "counts": [1200]}, "its picture [height, width] = [30, 40]"),
        ({"counts": [1200]}, "size"),
        ({"size": [30, 40], "counts": [600]}, "cover 600 pixels"),
        ({"size": [30, 40], "counts": [-1, 1201]}, "no lengths"),
        ({"size": [30, 40], "counts": "5"}, "cover 5 pixels"),
        ({"size": [30, 40], "counts": "\x00"}, "no lengths"),
        ({"size": [30, 40], "counts": "Pe`"}, "no lengths"),
        ({"size": [30, 40]}, "no lengths"),
        ("mask.png", "neither"),
        (3, "neither"),
    ],
)
def test_a_malformed_segmentation_is_refused_before_pycocotools_sees_it(segmentation, why):
    with pytest.raises(ValueError, match=r"."):
        try:
            segmentation_rle(segmentation, PICTURE, PICTURE)
        except ValueError as problem:
            assert why in str(problem)
            raise
