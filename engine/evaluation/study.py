"""A study: several comparisons in one table, one case of each setting that the method claims to help in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from engine.data.files import write_atomically
from engine.evaluation.statistics import in_points

FILE = "study.json"


def study_of(name: str, cases: Mapping[str, Mapping]) -> dict:
    """The content of study.json from the results of each case: a row for every arm but the baseline.

    Scores and differences are mAP from 0 to 1. `label` is the arm, and what it is measured against where that is not
    real data alone. `against` is real + DE minus the arm; None for real + DE itself.
    """
    rows = []
    for case, results in cases.items():
        for arm in results["arm_order"]:
            delta, against = results["deltas"].get(arm), results["against"].get(arm)
            if delta is None:
                continue
            rows.append(
                {
                    "case": case,
                    "train_images": results["data"]["train"]["images"],
                    "arm": arm,
                    "label": arm if delta["baseline"] == results["baseline"] else f"{arm}, minus {delta['baseline']}",
                    "baseline_map": _mean(results["arms"][delta["baseline"]]["map"]),
                    "map": _mean(results["arms"][arm]["map"]),
                    "seeds": len(results["seeds"]),
                    **{key: delta[key] for key in ("mean", "ci95", "verdict")},
                    "against": None if against is None else {"mean": against["mean"], "ci95": against["ci95"]},
                    "adapter_map": (results["adapter"].get("validation") or {}).get("map"),
                }
            )
    return {"study": name, "rows": rows}


def write_study(out: Path, study: Mapping) -> Path:
    """Write `out`/study.json; returns its path."""
    path = out / FILE
    write_atomically(path, (json.dumps(study, indent=1) + "\n").encode())
    return path


def study_table(study: Mapping) -> str:
    """As a markdown table, scores in percent."""
    lines = [
        "| case | labelled images | adapter AP (val) | arm | baseline | mAP | minus baseline, 95 % | DE minus it |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in study["rows"]:
        difference = f"{in_points(row['mean'], row['ci95'])}: {row['verdict']}"
        against = "" if row["against"] is None else in_points(**row["against"])
        cells = (row["case"], row["train_images"], _percent(row["adapter_map"]), row["label"])
        scores = (_percent(row["baseline_map"]), _percent(row["map"]))
        lines.append(f"| {' | '.join(map(str, (*cells, *scores, difference, against)))} |")
    return "\n".join(lines)


def _percent(score: float | None) -> str:
    return "–" if score is None else f"{100 * score:.1f}"


def _mean(values) -> float | None:
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else None
