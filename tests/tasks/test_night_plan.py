"""What a night takes for weak: the validation scores of the last comparison, or nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.errors import DatasetError
from engine.evaluation.results import SCORES
from tasks.night_file import Nights
from tasks.night_plan import weak_results


def write_results(folder: Path, **validation) -> Path:
    arm = {score: [0.5, 0.5] for score in SCORES} | {"loss_curve": [[], []], "seconds": [1.0, 1.0], **validation}
    delta = {"mean": 0.0, "ci95": [0, 0], "verdict": "cannot tell", "baseline": "real", "treatment": "real+de"}
    content = {"arms": {"real": arm, "real+de": arm}, "baseline": "real", "seeds": [0, 1]}
    content |= {"delta": delta, "deltas": {"real+de": delta}}
    content |= {name: {} for name in ("settings", "versions", "data", "generated", "adapter")}
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(content))
    return folder / "results.json"


def test_a_night_without_validation_scores_says_so_and_goes_on(tmp_path, caplog):
    nights, comparison = Nights(tmp_path / "nights"), tmp_path / "comparison"
    assert weak_results(nights, comparison) is None and not caplog.text
    write_results(comparison)
    assert weak_results(nights, comparison) is None
    assert caplog.text.count("results.json holds no validation scores") == 1

    path = write_results(comparison, validation={score: [0.5, 0.5] for score in SCORES})
    caplog.clear()
    assert weak_results(nights, comparison) == path and not caplog.text
    path.write_text("{")
    with pytest.raises(DatasetError, match="run the comparison again"):
        weak_results(nights, comparison)
