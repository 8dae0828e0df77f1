from __future__ import annotations

import json

from engine.evaluation.study import study_of, study_table, write_study
from engine.report.study_page import write_study_page


def case(mean: float, arms=("real", "real+de", "semi")) -> dict:
    difference = {"mean": mean, "ci95": [mean - 0.01, mean + 0.01], "verdict": "helps"}
    return {
        "arm_order": list(arms),
        "baseline": "real",
        "arms": {arm: {"map": [0.3, 0.4, None]} for arm in arms},
        "deltas": {arm: {**difference, "baseline": "real"} for arm in arms[1:]},
        "against": {"real": difference, "semi": difference},
        "data": {"train": {"images": 20}},
        "seeds": [0, 1, 2],
        "adapter": {"validation": {"map": 0.5}},
    }


def test_every_arm_of_every_case_is_a_row(tmp_path):
    study = study_of("label-scarce", {"20 labels": case(0.012), "<50> labels": case(-0.02)})
    assert [(row["case"], row["arm"]) for row in study["rows"]] == [
        (name, arm) for name in ("20 labels", "<50> labels") for arm in ("real+de", "semi")
    ]
    assert json.loads(write_study(tmp_path, study).read_text()) == study
    lines = study_table(study).splitlines()
    assert lines[2] == "| 20 labels | 20 | 50.0 | real+de | 35.0 | 35.0 | +1.2 (+0.2 to +2.2): helps |  |"
    assert lines[3].endswith("| +1.2 (+0.2 to +2.2) |") and len(lines) == 6
    page = write_study_page(tmp_path, study).read_text()
    assert "+1.2 (+0.2 to +2.2)" in page and "−2.0" in page
    assert "&lt;50&gt;" in page and "<50>" not in page and "http" not in page.replace("http-equiv", "")
