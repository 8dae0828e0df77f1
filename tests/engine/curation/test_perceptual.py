"""A hash survives what a copy goes through, and tells scenes apart."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from engine.curation.perceptual import find_duplicates, hash_distances, nearest, perceptual_hash
from engine.data.world import render_scene

BCCD = Path(__file__).parents[4] / "shared" / "data" / "bccd" / "images"


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=quality)
    return Image.open(packed).convert("RGB")


def _copies(image: Image.Image) -> list[Image.Image]:
    darker = np.clip(np.asarray(image, np.float32) * 0.9, 0, 255).astype(np.uint8)
    return [
        _jpeg(image, 85),
        image.resize((image.width * 3 // 2, image.height * 3 // 2), Image.Resampling.BICUBIC),
        Image.fromarray(darker),
    ]


def test_copies_of_scenes_stay_within_two_bits_and_other_scenes_do_not():
    scenes = [render_scene(seed).image for seed in range(60)]
    hashes = [perceptual_hash(scene) for scene in scenes]
    apart = hash_distances(hashes, hashes)[np.triu_indices(len(hashes), 1)]
    copied = [
        (value ^ perceptual_hash(c)).bit_count() for value, s in zip(hashes, scenes, strict=True) for c in _copies(s)
    ]
    assert apart.min() > 6, "different scenes must not look alike"
    assert np.mean(np.array(copied) <= 2) > 0.95 and max(copied) <= 6


def test_a_mirrored_scene_is_another_image():
    scene = render_scene(1).image
    assert (perceptual_hash(scene) ^ perceptual_hash(ImageOps.mirror(scene))).bit_count() > 10


@pytest.mark.skipif(not BCCD.is_dir(), reason="the blood-cell images are not here")
def test_photographs_that_look_alike_to_a_layman_are_told_apart():
    hashes = [perceptual_hash(Image.open(path)) for path in sorted(BCCD.glob("*.jpg"))[:36]]
    assert not find_duplicates(hashes, 2)


def test_hash_is_a_64_bit_int_for_any_mode_and_size_and_flat_images_share_one():
    picture = render_scene(5).image
    for image in (
        picture,
        picture.convert("L"),
        picture.convert("CMYK"),
        picture.resize((1, 1)),
        picture.resize((7, 300)),
    ):
        assert 0 <= perceptual_hash(image) < 2**64
    flat = [Image.new("RGB", (40, 30), colour) for colour in ((0, 0, 0), (255, 255, 255), (12, 200, 90))]
    assert {perceptual_hash(image) for image in [*flat, _jpeg(flat[2], 50)]} == {0}
    assert perceptual_hash(picture) == perceptual_hash(picture.copy()) != 0


def test_find_duplicates_keeps_the_first_and_does_not_follow_chains():
    # 0 - 1 - 2 is a chain of one-bit steps; 2 is two bits away from the kept 0
    assert find_duplicates([0b000, 0b001, 0b011, 0b000], 1) == {1: 0, 3: 0}
    assert find_duplicates([0b000, 0b001, 0b011], 2) == {1: 0, 2: 0}
    assert find_duplicates([7, 7, 8], 0) == {1: 0}
    assert find_duplicates([], 2) == {} and find_duplicates([2**64 - 1], 64) == {}


def test_duplicates_and_nearest_agree_with_a_plain_search():
    rng = np.random.default_rng(0)
    base = [int(v) for v in rng.integers(0, 2**63, 40)]
    hashes = base + [value ^ (1 << int(rng.integers(64))) for value in base[:10]]
    kept: list[int] = []
    expected = {}
    for index, value in enumerate(hashes):
        close = [k for k in kept if (hashes[k] ^ value).bit_count() <= 3]
        if close:
            expected[index] = close[0]
        else:
            kept.append(index)
    assert find_duplicates(hashes, 3) == expected and len(expected) == 10
    for query, (bits, index) in zip(hashes[40:], nearest(hashes[40:], base), strict=True):
        assert bits == min((query ^ value).bit_count() for value in base) == (query ^ base[index]).bit_count()


def test_nearest_needs_references():
    assert nearest([], []) == []
    with pytest.raises(ValueError, match="No reference"):
        nearest([1], [])
