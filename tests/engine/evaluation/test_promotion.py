"""The policy of promotion, at its borders."""

from __future__ import annotations

import pytest

from engine.evaluation.promotion import rule
from engine.sections import ScaleUpSettings


@pytest.mark.parametrize(
    ("mean", "low", "high", "not_hurting", "helps"),
    [
        (0.01, 0.001, 0.02, True, True),
        (0.01, 0.0, 0.02, True, False),
        (0.0, 0.0, 0.0, True, False),
        (-0.005, -0.02, 0.01, True, False),  # the tolerance itself
        (-0.006, -0.02, 0.01, False, False),
        (-0.004, -0.006, 0.0, True, False),
        (-0.004, -0.006, -0.001, False, False),  # small, but it is told to hurt
    ],
)
def test_what_is_promoted(mean, low, high, not_hurting, helps):
    assert rule(mean, low, high, ScaleUpSettings(tolerance=0.005)).promoted is not_hurting
    assert rule(mean, low, high, ScaleUpSettings(promote="helps")).promoted is helps


def test_the_reason_names_the_figures():
    ruling = rule(-0.012, -0.03, 0.001, ScaleUpSettings(tolerance=0.01))
    assert ruling.reason == ("scale_up.tolerance=0.01 allows -1.0 mAP on average: -1.2 mAP, 95 % interval -3.0 to +0.1")
