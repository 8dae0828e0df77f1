"""A generator that draws the same picture from every source is caught; scenes, variants and a common tint are not."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageChops

from engine.curation.collapse import FEWEST, bits_apart, measure_spread
from engine.curation.gates import judge
from engine.curation.perceptual import perceptual_hash
from engine.data.pixels import Frame
from engine.data.world import render_scene
from engine.evaluation.leakage import embed
from engine.ldm import embedded_folder
from engine.ldm.diffusion import load_ldm
from engine.sections import ReviewSettings

REAL, IMAGES = 20, 24
LOOSE = ReviewSettings(duplicate_distance=0, borderline_bits=0)  # what repeats is another gate's business


@pytest.fixture
def world(folders):
    folders.add_split("train", range(REAL))
    return folders


@pytest.fixture(scope="module")
def features():
    ldm = load_ldm(embedded_folder(), device="cpu")
    return lambda dataset: embed(dataset, ldm, Frame(64, ldm.alignment), dataset.split).numpy()


def _scene(number: int) -> Image.Image:
    return render_scene(100 + number).image


def _same(number: int) -> Image.Image:
    """One picture, through which the source hardly shows: several bits between any two."""
    return Image.blend(render_scene(500).image, _scene(number), 0.3)


def _judge(world, pictures, sources=None, settings=LOOSE, embed=None):
    sources = sources or [1 + n % REAL for n in range(len(pictures))]
    generated = world.generate(pictures, sources, [[0.9]] * len(pictures))
    return judge(generated, world.splits(), settings, embed)


def _collapsed(judgement) -> list[int]:
    return [v.image_id for v in judgement.verdicts if "collapsed" in v.reasons]


def test_a_collapsed_batch_fails_by_hashes_alone(world):
    pictures = [_same(n) for n in range(IMAGES)]
    hashes = [perceptual_hash(picture) for picture in pictures]
    apart = bits_apart(hashes, hashes)[np.triu_indices(IMAGES, 1)]
    assert np.median(apart) > 4, "for the search for duplicates most pairs differ"
    judgement = _judge(world, pictures)
    assert judgement.batch.outcome == "fail" and judgement.batch.figures["hash"]["ratio"] < 0.5
    assert len(_collapsed(judgement)) >= 0.9 * IMAGES
    assert judgement.batch.figures["hash"]["clump"] == len(_collapsed(judgement))
    assert "look like it" in judgement.verdicts[0].note and judgement.verdicts[0].scores["crowding"] >= 0.5


def test_only_the_clump_fails_where_half_the_batch_is_sound(world):
    sound = [_scene(n) for n in range(IMAGES // 2)]
    judgement = _judge(world, sound + [_same(n) for n in range(IMAGES // 2, IMAGES)])
    failed = _collapsed(judgement)
    assert judgement.batch.outcome == "fail" and len(failed) >= 10
    assert min(failed) > len(sound), "sound images stay"


def test_scenes_do_not_collapse_by_hashes_or_features(world, features):
    judgement = _judge(world, [_scene(n) for n in range(IMAGES)], settings=ReviewSettings(), embed=features)
    assert judgement.batch.outcome == "pass" and set(judgement.batch.figures) == {"hash", "features"}
    assert all(0.85 < figures["ratio"] < 1.15 for figures in judgement.batch.figures.values())
    assert [v.outcome for v in judgement.verdicts] == ["pass"] * IMAGES
    scores = {"train_similarity", "held_out_similarity", "train_distance", "held_out_distance", "crowding"}
    assert all(scores <= set(v.scores) for v in judgement.verdicts)


def test_features_see_the_same_things_moved_about_which_hashes_miss(world, features):
    moved = [ImageChops.offset(render_scene(500).image, 8 * (n % 6), 8 * (n // 6)) for n in range(IMAGES)]
    assert _judge(world, moved).batch.outcome == "pass"
    judgement = _judge(world, moved, embed=features)
    assert judgement.batch.outcome == "fail" and judgement.batch.figures["features"]["clump"] > 0.9 * IMAGES


def test_variants_of_one_source_may_be_alike(world):
    pictures = [Image.blend(_scene(n % 12), _scene(50 + n), 0.2) for n in range(60)]
    judgement = _judge(world, pictures, sources=[1 + n % 12 for n in range(60)])
    assert judgement.batch.outcome == "pass" and not _collapsed(judgement)


def test_what_all_images_have_in_common_is_no_collapse(world, features):
    tinted = [Image.blend(_scene(n), Image.new("RGB", (64, 64), (200, 120, 90)), 0.25) for n in range(IMAGES)]
    judgement = _judge(world, tinted, embed=features)
    assert judgement.batch.outcome == "pass" and not _collapsed(judgement)


def test_too_few_images_are_not_judged_and_the_gate_can_be_off(world):
    judgement = _judge(world, [_same(n) for n in range(FEWEST - 1)])
    assert judgement.batch.outcome is None and "too few" in judgement.batch.note and not _collapsed(judgement)
    one_source = _judge(world, [_same(n) for n in range(IMAGES)], sources=[1] * IMAGES)
    assert one_source.batch.outcome is None
    off = ReviewSettings(duplicate_distance=0, borderline_bits=0, min_spread=0.0)
    assert _judge(world, [_same(n) for n in range(IMAGES)], settings=off).batch.outcome is None


def test_each_origin_counts_as_much_as_any_other():
    """Sources that resemble each other, one of them drawn a hundred times, are no clump."""
    rng = np.random.default_rng(0)
    real = [int(v) for v in rng.integers(0, 2**63, 40)]
    twin = real[0] ^ 0b111
    hashes, origins = [*real, twin, *[real[0]] * 100], [*range(40), 40, *[0] * 100]
    spread = measure_spread(hashes, origins, [*real, twin], bits_apart, 0.5)
    assert spread.crowding[40] == pytest.approx(1 / 40) and spread.crowding.max() < 0.05
