from __future__ import annotations

import dataclasses
import json

import pytest

from engine.config import load_settings
from engine.data.dataset import Annotation, Dataset, ImageRecord, read_dataset
from engine.errors import ConfigError
from engine.evaluation.candidates import Candidate, faithful_ratio, fidelity, propose
from engine.evaluation.tuning import ROUNDS, Trial, affordable, choose, train_baseline


def pool_of(make_dataset, ratios) -> Dataset:
    """One image a ratio, guidance 1 and 2 in turn, with a box of score 0.9 and one of 0.3."""
    data = make_dataset(range(1, len(ratios) + 1), [(1, "a")], [])
    images = tuple(
        dataclasses.replace(image, extra={"de": {"strength": ratio, "guidance_scale": 1.0 + number % 2}})
        for number, (image, ratio) in enumerate(zip(data.images, ratios, strict=True))
    )
    boxes = tuple(
        Annotation(2 * image.id + k, image.id, 1, (10.0 + 100 * k, 10.0, 50.0, 50.0), 2500.0, 0, {"score": score})
        for image in images
        for k, score in enumerate((0.9, 0.3))
    )
    return dataclasses.replace(data, images=images, annotations=boxes)


def test_a_candidate_is_a_part_of_the_pool_with_its_own_thresholds(make_dataset):
    pool = pool_of(make_dataset, [0.2, 0.2, 0.5, 0.5])
    part = Candidate(0.4, 1.0, 0.5, 0.5).part_of(pool)
    assert [image.id for image in part.images] == [1]
    assert [(a.extra["score"], a.iscrowd) for a in part.annotations] == [(0.9, 0), (0.3, 1)]
    assert [a.extra["score"] for a in Candidate(0.4, 1.0, 0.8, 0.5).part_of(pool).annotations] == [0.9]
    assert len(Candidate(0.5, 2.0, 0.2, 0.5).part_of(pool).images) == 4
    assert not Candidate(0.1, 2.0, 0.2, 0.5).part_of(pool).images
    written = Candidate(0.4, 1.5, 0.5, 0.25).settings(strength_min=0.1, guidance_min=1.0)
    settings = load_settings(
        overrides=[f"{s}.{key}={value}" for s, values in written.items() for key, value in values.items()]
    )
    drawn = settings.generation
    assert (drawn.strength_min, drawn.strength_max, drawn.guidance_min) == (0.1, 0.4, 1.0)
    assert (drawn.text_to_image, drawn.keep_negatives) == (0, False)
    assert (settings.generation.guidance_max, settings.compare.generated_share) == (1.5, 0.25)


def test_fidelity_falls_where_the_detector_finds_other_boxes(make_dataset):
    pool = pool_of(make_dataset, [0.15] * 10 + [0.55] * 10 + [0.95] * 3)
    found = tuple(
        dataclasses.replace(a, bbox_xywh=(*a.bbox_xywh[:1], 200.0, 50.0, 50.0) if a.image_id > 15 else a.bbox_xywh)
        for a in pool.annotations
        if a.extra["score"] > 0.5
    )
    rows = fidelity(pool, dataclasses.replace(pool, annotations=found), 0.5)
    assert [(row["low"], row["images"], row["f1"]) for row in rows] == [(0.1, 10, 1.0), (0.5, 10, 0.5)]
    assert faithful_ratio(rows) == 0.2
    assert faithful_ratio([{**row, "f1": 1.0} for row in rows]) == 0.6
    assert faithful_ratio([{**row, "f1": 0.0} for row in rows]) == 0.2


def test_proposals_stay_within_the_pool_and_are_the_same_for_a_seed():
    every = propose(0.7, 0.8, (0.3, 0.5), (1.0, 2.0), (0.1, 0.5), seed=3)
    assert len(every) == len(set(every)) == 3 * 2 * 2 * 2 and every == propose(
        0.7, 0.8, (0.3, 0.5), (1.0, 2.0), (0.1, 0.5), 3
    )
    assert {c.strength_max for c in every} == {0.42, 0.7, 0.8}
    assert len({c.name for c in every}) == len(every)


def test_the_time_decides_how_many_and_too_little_is_said():
    assert affordable(600, 10, 2, 1) == int((120 - 8) * 3 / 5) and affordable(600, 10, 2, 5) == int((120 - 4) * 3 / 5)
    with pytest.raises(ConfigError, match=r"--minutes: 0\.5 are left .* 10 s each, 2 at a time"):
        affordable(30, 10, 2, 1)


@pytest.fixture
def tried(world_folder):
    """Training and validation images, a pool, settings and three candidates."""
    train, val = read_dataset(world_folder, "train"), read_dataset(world_folder, "val")
    drawn = [
        ImageRecord(i.id, i.file_name, i.width, i.height, {"de": {"strength": 0.2, "guidance_scale": 1.0}})
        for i in train.images
    ]
    pool = dataclasses.replace(
        train,
        images=tuple(drawn),
        annotations=tuple(dataclasses.replace(a, extra={"score": 0.9}) for a in train.annotations),
    )
    settings = load_settings(
        overrides=["detector.steps=1", "detector.batch_size=2", "detector.width=32", "detector.convs=1"]
    )
    candidates = [Candidate(0.2, 1.0, 0.5, share) for share in (0.1, 0.2, 0.3)]
    return train, val, pool, settings, candidates


@pytest.fixture
def trainings(monkeypatch):
    """(names of arms, seeds) of every call that trains; three at a time, which take no time and find nothing."""
    calls = []

    def run(jobs, val, settings, on_progress):
        calls.append([(job.arm.name, job.seed) for job in jobs])
        for job in jobs:
            job.path.parent.mkdir(parents=True, exist_ok=True)
            job.path.write_text(json.dumps({"digest": job.digest, "detections": [], "seconds": 7.0}))

    monkeypatch.setattr("engine.evaluation.tuning.run_jobs", run)
    monkeypatch.setattr("engine.evaluation.tuning.trainings_at_once", lambda settings: 3)
    return calls


def test_the_clock_is_set_by_trainings_in_company(tried, trainings, tmp_path):
    train, val, _, settings, _ = tried
    assert train_baseline(train, val, tmp_path, settings) == (7.0, 3)
    assert trainings == [[("real", 0), ("real", 1), ("real", 2)]]


@pytest.mark.parametrize(
    ("calls", "left_out", "seeds"),
    [
        (1, 1, [1, 1]),  # of the first round two candidates and real data: the third is no trial
        (2, 6, [1, 1, 1]),  # of the second nothing: one seed each decides
        (3, 3, [1, 2, 2]),  # the second round is finished with one of its two seeds
        (9, 0, [1, 5, 5]),
    ],
)
def test_once_the_time_is_over_no_training_starts_and_what_is_finished_decides(
    tried, trainings, tmp_path, calls, left_out, seeds
):
    train, val, pool, settings, candidates = tried
    given = (train, val, pool, candidates, tmp_path, settings)
    shown = []
    trials, missing = choose(*given, lambda: len(trainings) < calls, lambda *numbers: shown.append(numbers))
    assert missing == left_out and sorted(len(trial.scores) for trial in trials) == seeds
    assert all(len(trial.scores) == len(trial.real) for trial in trials)
    assert all(len(batch) <= 3 for batch in trainings) and shown[0] == (0, 4)
    trials, missing = choose(*given)  # later it goes on
    assert missing == 0 and sorted(len(trial.scores) for trial in trials) == [1, 5, 5]
    done = [job for batch in trainings for job in batch]
    assert len(done) == len(set(done)) == 4 + 6 + 6


def test_without_any_time_nothing_is_chosen(tried, trainings, tmp_path):
    train, val, pool, settings, candidates = tried
    with pytest.raises(ConfigError, match="over before a candidate was trained"):
        choose(train, val, pool, candidates, tmp_path, settings, lambda: False)
    assert trainings == []


def test_rounds_keep_the_better_and_give_them_more_seeds(tried, tmp_path):
    train, val, pool, settings, candidates = tried
    trials, left_out = choose(train, val, pool, candidates, tmp_path, settings)
    assert left_out == 0
    assert sorted(len(trial.scores) for trial in trials) == [1, 5, 5]
    assert len(trials[0].scores) == 5 == len(trials[0].real) == sum(map(len, ROUNDS))
    assert {trial.candidate for trial in trials} == set(candidates)
    assert trials[0].gain >= trials[1].gain
    assert Trial(candidates[0], (0.3, 0.5), (0.1, 0.5)).gain == pytest.approx(0.1)
    assert not list(tmp_path.rglob("*test*"))
