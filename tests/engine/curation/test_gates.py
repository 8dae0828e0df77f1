"""For each gate a constructed bad image that it catches, and good ones that it lets through."""

from __future__ import annotations

import dataclasses

import pytest
from PIL import ImageChops, ImageOps

from engine.curation.gates import judge as judge_all
from engine.curation.perceptual import perceptual_hash
from engine.data.dataset import Annotation, read_dataset, write_dataset
from engine.data.pixels import Frame
from engine.data.world import render_scene
from engine.errors import DatasetError
from engine.evaluation.leakage import embed
from engine.ldm import embedded_folder
from engine.ldm.diffusion import load_ldm
from engine.sections import ReviewSettings


def _scene(seed: int):
    return render_scene(seed).image


def judge(dataset, real, settings):
    return judge_all(dataset, real, settings).verdicts


def _by_id(verdicts) -> dict:
    return {verdict.image_id: verdict for verdict in verdicts}


def test_each_fault_gets_its_reason_and_good_images_pass(folders):
    dataset = folders.generate(
        [_scene(100), _scene(101), _scene(100), _scene(10), _scene(2), _scene(21)],
        sources=[1, 2, 3, 4, 3, 4],
        scores=[[0.9], [0.3, 0.1], [0.9], [0.9], [0.9, 0.7], [0.1]],
    )
    verdicts = _by_id(judge(dataset, folders.splits(), ReviewSettings(min_mean_score=0.5)))
    assert [v.accepted for v in verdicts.values()] == [True, False, False, False, True, False]
    assert [v.reasons for v in verdicts.values()] == [
        (),
        ("low_score",),
        ("duplicate",),
        ("leakage",),  # val image 1
        ("near_source",),  # train image 3 is scene 2
        ("leakage", "low_score"),  # test image 2
    ]
    assert verdicts[2].scores["mean_score"] == pytest.approx(0.2) and "0.200" in verdicts[2].note
    assert "generated image 1" in verdicts[3].note
    assert "val_10.png" in verdicts[4].note and "test_21.png" in verdicts[6].note
    assert verdicts[5].scores["source_distance"] == 0 and verdicts[1].scores["source_distance"] > 6


def test_unreadable_images_are_rejected_with_the_cause(folders):
    dataset = folders.generate([_scene(s) for s in (100, 101, 102, 103)], [1, 2, 3, 4], [[0.9]] * 4)
    images = folders.generated / "images"
    (images / "000001.png").unlink()
    (images / "000002.png").write_bytes((images / "000002.png").read_bytes()[:200])
    _scene(103).resize((32, 32)).save(images / "000003.png")
    verdicts = _by_id(judge(dataset, folders.splits(), ReviewSettings()))
    assert [v.accepted for v in verdicts.values()] == [False, False, False, True]
    assert all(verdicts[i].reasons == ("unreadable",) and f"00000{i}.png" in verdicts[i].note for i in (1, 2, 3))


def test_a_rejected_image_does_not_take_its_repetition_with_it(folders):
    dataset = folders.generate([_scene(100), _scene(100), _scene(100)], [1, 2, 3], [[0.1], [0.9], [0.8]])
    verdicts = judge(dataset, folders.splits(), ReviewSettings(min_mean_score=0.5))
    assert [v.reasons for v in verdicts] == [("low_score",), (), ("duplicate",)]


def test_what_the_pool_holds_already_is_no_news(folders):
    """Compared with the pool by the same measure as with each other; a near one counts unless it is a variant."""

    def near(seed):
        return _scene(seed).resize((12, 12)).resize((64, 64))

    assert all((perceptual_hash(near(s)) ^ perceptual_hash(_scene(s))).bit_count() == 2 for s in (101, 103))
    folders.generate([_scene(101), _scene(103), _scene(100)], [1, 2, 3], [[0.9]] * 3)
    pool = folders.generated.rename(folders.real.parent / "pool")
    dataset = folders.generate([_scene(102), near(101), _scene(100), near(103)], [3, 3, 4, 2], [[0.9]] * 4)
    settings = ReviewSettings(duplicate_distance=1, borderline_bits=1, pool=str(pool))
    new, doubtful, repeated, variant = judge(dataset, folders.splits(), settings)
    assert new.outcome == variant.outcome == "pass"
    assert (doubtful.outcome, doubtful.doubts) == ("borderline", ("duplicate",))
    assert repeated.reasons == ("duplicate",) and "image 000003.png of the pool (0 bits differ)" in repeated.note
    alone = judge(dataset, folders.splits(), dataclasses.replace(settings, pool=""))
    assert [v.outcome for v in alone] == ["pass"] * 4


def test_ignore_regions_and_missing_scores_do_not_count(folders):
    dataset = folders.generate([_scene(100), _scene(101), _scene(102)], [1, 2, 3], [[0.8, 0.1], [], []])
    crowd = [a if a.extra["score"] > 0.5 else Annotation(**(vars(a) | {"iscrowd": 1})) for a in dataset.annotations]
    unscored = Annotation(9, 3, 1, (1.0, 1.0, 9.0, 9.0), 81.0, 0, {})
    write_dataset(folders.generated, "annotations", dataset.images, [*crowd, unscored], dataset.categories)
    dataset = read_dataset(folders.generated, "annotations")
    verdicts = _by_id(judge(dataset, folders.splits(), ReviewSettings(min_mean_score=0.5)))
    assert verdicts[1].accepted and verdicts[1].scores["mean_score"] == 0.8 and verdicts[1].scores["boxes"] == 1
    assert all(verdicts[i].accepted and "mean_score" not in verdicts[i].scores for i in (2, 3))


def test_distance_widens_and_narrows_the_duplicate_gates(folders):
    near = _scene(100).resize((60, 60)).resize((64, 64))
    dataset = folders.generate([_scene(100), near, _scene(101)], [1, 2, 3], [[0.9]] * 3)
    wide = judge(dataset, folders.splits(), ReviewSettings(duplicate_distance=64))
    assert [v.accepted for v in wide] == [False] * 3 and all("leakage" in v.reasons for v in wide)
    assert [v.accepted for v in judge(dataset, folders.splits(), ReviewSettings(duplicate_distance=6))] == [
        True,
        False,
        True,
    ]


def test_the_wrong_real_folder_is_refused(folders):
    dataset = folders.generate([_scene(100)], [77], [[0.9]])
    with pytest.raises(DatasetError, match="source image 77.*train.json"):
        judge(dataset, folders.splits(), ReviewSettings())
    with pytest.raises(DatasetError, match="source image 77"):
        judge(dataset, {}, ReviewSettings())


def test_images_without_provenance_are_judged_by_what_is_known(folders):
    dataset = folders.generate([_scene(100), _scene(12)], [None, None], [[0.9], [0.9]])
    verdicts = judge(dataset, folders.splits(), ReviewSettings())
    assert [v.reasons for v in verdicts] == [(), ("leakage",)]
    assert "source_distance" not in verdicts[0].scores
    assert all(v.accepted for v in judge(dataset, {}, ReviewSettings()))


def test_an_image_a_little_further_from_a_held_out_one_is_borderline(folders):
    far = _scene(10).crop((2, 2, 62, 62)).resize((64, 64))
    bits = (perceptual_hash(far) ^ perceptual_hash(_scene(10))).bit_count()
    assert bits > 0
    dataset = folders.generate([far, _scene(100)], [1, 2], [[0.9]] * 2)
    settings = ReviewSettings(duplicate_distance=bits - 1)
    first, second = judge(dataset, folders.splits(), settings)
    assert (first.outcome, first.doubts, first.accepted) == ("borderline", ("leakage",), False)
    assert first.note.startswith("borderline: leakage: repeats val image val_10.png") and second.outcome == "pass"
    taken = judge(dataset, folders.splits(), dataclasses.replace(settings, accept_borderline=True))
    assert [v.accepted for v in taken] == [True, True]
    assert judge(dataset, folders.splits(), dataclasses.replace(settings, borderline_bits=0))[0].outcome == "pass"


def test_mirrored_copies_of_held_out_images_leak_too(folders):
    dataset = folders.generate([ImageOps.mirror(_scene(21)), _scene(100)], [1, 2], [[0.9]] * 2)
    first, second = judge(dataset, folders.splits(), ReviewSettings())
    assert first.reasons == ("leakage",) and "test_21.png" in first.note and second.outcome == "pass"


def test_a_training_image_that_was_not_the_source_was_learnt_by_heart(folders):
    """Image 1 repeats its source, 2 and 3 (mirrored) another training image, 4 was drawn from words alone."""
    pictures = [_scene(0), _scene(1), ImageOps.mirror(_scene(2)), _scene(3), _scene(100)]
    dataset = folders.generate(pictures, [1, 3, 4, 4, 1], [[0.9]] * 5)
    dataset.images[3].extra["de"]["mode"] = "text_to_image"
    verdicts = judge(dataset, folders.splits(), ReviewSettings())
    assert [v.reasons for v in verdicts] == [("near_source",), *[("memorised",)] * 3, ()]
    assert [v.accepted for v in verdicts] == [True, False, False, False, True]
    assert "train_1.png" in verdicts[1].note and verdicts[1].scores["train_distance"] == 0
    assert "source_distance" not in verdicts[3].scores, "a source that lends words only is none of its pixels"


def test_features_find_leaks_and_memorised_images_that_hashes_miss(folders):
    """Shifted by half the picture: other bits, the same things in it."""
    folders.add_split("train", range(12))
    ldm = load_ldm(embedded_folder(), device="cpu")

    def features(dataset):
        return embed(dataset, ldm, Frame(64, ldm.alignment)).numpy()

    held_out, trained = (ImageChops.offset(_scene(seed), 32, 0) for seed in (20, 1))
    dataset = folders.generate([held_out, trained, trained, _scene(100)], [5, 6, 2, 7], [[0.9]] * 4)
    settings = ReviewSettings(feature_similarity=0.8)
    assert [v.outcome for v in judge(dataset, folders.splits(), settings)] == ["pass", "pass", "fail", "pass"]
    verdicts = judge_all(dataset, folders.splits(), settings, features).verdicts
    assert verdicts[0].reasons == ("leakage",) and "test_20.png" in verdicts[0].note
    assert verdicts[1].reasons == ("memorised",) and "train_1.png" in verdicts[1].note
    assert "memorised" not in verdicts[2].reasons, "it may be like the image that it was drawn from"
    assert verdicts[3].outcome == "pass" and verdicts[3].scores["train_similarity"] < 0.8
