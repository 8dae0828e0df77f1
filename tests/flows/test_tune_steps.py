"""The steps of `de tune`, one by one, without a training."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from engine.data.dataset import read_dataset, subset
from engine.data.world_folder import write_world
from engine.errors import ConfigError
from engine.sections import ReviewSettings, Settings
from flows.tune import PLAN, TuneRequest, _affordable, _read_plan, _search
from flows.tune_pool import pool_settings, score_thresholds
from tasks.settings import open_settings

SETTINGS = open_settings(None, ["ldm.device=cpu"], "world")[1]


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune-steps") / "world"
    write_world(folder, 6, 4, 2, seed=3)
    return read_dataset(folder, "train"), read_dataset(folder, "val")


def request_of(settings=SETTINGS, **changes):
    values = {"data": Path(), "ldm": "world", "adapter": Path(), "out": Path(), "images": 16, "minutes": 5, "seed": 0}
    return TuneRequest(**{**values, **changes}, settings=settings)


def test_images_of_the_pool_that_repeat_validation_images_are_told(splits):
    train, val = splits
    told = []
    found = _search(request_of(), train, val, subset(val, [1, 2]), told.append)
    assert found["generated"] == {"images that repeat val images": 2}
    assert found["train"] == {"images that repeat val images": 0}
    assert len(told) == 1 and told[0].startswith("2 generated images that repeat val images")
    off = dataclasses.replace(SETTINGS, compare=dataclasses.replace(SETTINGS.compare, leakage="off"))
    assert _search(request_of(off), train, val, val, told.append) == {} and len(told) == 1


def test_more_minutes_try_more_of_a_plan_that_was_made_with_fewer(monkeypatch, tmp_path):
    monkeypatch.setattr("flows.tune.trainings_at_once", lambda settings: 1)
    values = {"guidance_max": 1.0, "score": 0.5, "share": 0.5}
    plan = {"training_seconds": 10.0, "baselines": 1, "seconds_before": 60.0}
    plan["candidates"] = [{"strength_max": number / 100, **values} for number in range(40)]
    few, again, many = (_affordable(request_of(minutes=minutes), plan) for minutes in (5, 5, 8))
    assert few == again == many[: len(few)]
    assert [len(few), len(many)] == [(24 - 8) * 3 // 5, (42 - 8) * 3 // 5]
    assert len(_affordable(request_of(minutes=60), plan)) == 40
    with pytest.raises(ConfigError, match="--minutes: 0.0 are left"):
        _affordable(request_of(minutes=0.5), plan)
    (tmp_path / PLAN).write_text(json.dumps({name: plan[name] for name in ("training_seconds", "candidates")}))
    assert _read_plan(tmp_path) is None, "of an earlier version: it does not say enough"
    (tmp_path / PLAN).write_text(json.dumps(plan))
    assert _read_plan(tmp_path) == plan


def test_gates_that_judge_labels_do_not_judge_the_pool_whose_boxes_have_any_score():
    judged = Settings(review=ReviewSettings(min_mean_score=0.5, box_count_factor=3.0, min_label_agreement=0.5))
    review = pool_settings(judged).review
    assert (review.box_count_factor, review.min_mean_score, review.min_label_agreement) == (0.0, 0.0, 0.0)
    assert review.duplicate_distance == judged.review.duplicate_distance


def test_thresholds_that_come_out_equal_are_tried_once(splits, monkeypatch):
    found = {0.6: 0.12, 0.75: 0.17, 0.9: 0.35}
    monkeypatch.setattr("engine.generation.draw.load_drawer", lambda *a: None)
    monkeypatch.setattr("engine.adapter.quality.predict_sources", lambda *a: [])
    monkeypatch.setattr(
        "engine.adapter.thresholds.choose_thresholds",
        lambda val, detections, precision, suppress: {"pooled": {"score": found[precision]}},
    )
    assert score_thresholds(request_of(), splits[1]) == {"precision 0.6": 0.2, "precision 0.9": 0.35}
