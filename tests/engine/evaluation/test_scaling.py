from __future__ import annotations

import math

import pytest

from engine.data.dataset import read_dataset
from engine.evaluation.scaling import curve, nested_subset, scaling_of


def points(score, multiples=(0, 1, 2, 4, 8), scatter=0.002):
    return [(m, 100 * m, [score(m) - scatter, score(m) + scatter]) for m in multiples]


def test_a_saturating_score_is_fitted_and_stops_paying_where_the_curve_says():
    scaling = scaling_of(points(lambda m: 0.4 + 0.1 * (1 - math.exp(-m / 2))), worthwhile=0.01)
    fit = scaling["fit"]
    assert (fit["base"], fit["gain"], fit["scale"]) == pytest.approx((0.4, 0.1, 2.0), rel=0.02)
    stop = scaling["stops_paying"]
    assert 2 < stop < 8 and curve(fit, 2 * stop) - curve(fit, stop) == pytest.approx(0.01, abs=0.001)


def test_a_falling_score_never_pays():
    scaling = scaling_of(points(lambda m: 0.4 - 0.05 * (1 - math.exp(-m))), worthwhile=0.005)
    assert scaling["stops_paying"] == 0 and "No amount" in scaling["note"]


def test_a_score_that_goes_up_and_down_has_no_fit():
    scaling = scaling_of(points(lambda m: 0.4 + 0.05 * (m in (1, 4)), scatter=0.0005), worthwhile=0.005)
    assert scaling["fit"] is None and scaling["stops_paying"] == 1


def test_a_slow_start_is_no_end():
    slow = [(0, 0, [0.300, 0.300]), (1, 50, [0.303, 0.303]), (4, 200, [0.400, 0.400])]
    assert scaling_of(slow, worthwhile=0.005)["stops_paying"] is None
    assert scaling_of([*slow, (8, 400, [0.401, 0.401])], worthwhile=0.005)["stops_paying"] == 4
    level = [(m, n, [0.3 + 0.001 * m] * 2) for m, n, _ in slow]
    assert scaling_of(level, worthwhile=0.005)["stops_paying"] == 0


def test_still_paying_at_the_end_is_said():
    scaling = scaling_of(points(lambda m: 0.3 + 0.02 * m, multiples=(0, 1, 2)), worthwhile=0.005)
    assert scaling["fit"] is None and scaling["stops_paying"] is None and "still pays" in scaling["note"]


def test_subsets_are_nested(world_folder):
    train = read_dataset(world_folder, "train")
    few, more = (nested_subset(train, count) for count in (3, 6))
    assert len(few.images) == 3 and {i.id for i in few.images} < {i.id for i in more.images}
    assert {a.image_id for a in few.annotations} <= {i.id for i in few.images}
