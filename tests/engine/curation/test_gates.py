"""For each gate a constructed bad image that it catches, and good ones that it lets through."""

from __future__ import annotations

import pytest

from engine.config import ReviewSettings
from engine.curation.gates import judge as judge_all
from engine.data.dataset import Annotation, read_dataset, write_dataset
from engine.data.world import render_scene
from engine.errors import DatasetError


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
