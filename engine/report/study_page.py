"""`study.html`: the differences of every case of a study as intervals on one axis, and the table behind them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from engine.data.files import write_atomically
from engine.report.plots import arm_colours, difference_plot, signed
from engine.report.templates import open_templates

FILE = "study.html"


def write_study_page(out: Path, study: Mapping) -> Path:
    """Write `out`/study.html, one self-contained file, from the content of study.json; returns its path."""
    environment = open_templates()
    rows = study["rows"]
    colours = arm_colours(list(dict.fromkeys(row["arm"] for row in rows)))
    page = environment.get_template("study.html.j2").render(
        title=f"Study: {study['study']}",
        plots=[(arm, _plot(rows, arm, colours[arm])) for arm in colours],
        verdicts=_verdicts(rows),
        rows=[_row(row, colours) for row in rows],
    )
    path = out / FILE
    write_atomically(path, page.encode("utf-8", errors="replace"))
    return path


def _plot(rows, arm: str, colour: int):
    """One interval a case, of one arm."""
    shown = [(r["case"], colour, *(100 * v for v in (r["mean"], *r["ci95"]))) for r in rows if r["arm"] == arm]
    return difference_plot(shown, f"{arm} minus its baseline, mAP points, 95 % interval")


def _verdicts(rows) -> list[tuple[str, str]]:
    """(case, in words) of real + DE."""
    return [
        (row["case"], f"{signed(100 * row['mean'])} mAP: {row['verdict']}") for row in rows if row["arm"] == "real+de"
    ]


def _row(row: Mapping, colours: Mapping[str, int]) -> dict:
    def points(part: Mapping | None) -> str:
        if part is None:
            return ""
        low, high = (signed(100 * value) for value in part["ci95"])
        return f"{signed(100 * part['mean'])} ({low} to {high})"

    def percent(score: float | None) -> str:
        return "–" if score is None else f"{100 * score:.1f}"

    return {
        **{key: row[key] for key in ("case", "train_images", "arm", "verdict", "seeds")},
        "colour": colours[row["arm"]],
        "adapter": percent(row["adapter_map"]),
        "real": percent(row["baseline_map"]),
        "map": percent(row["map"]),
        "difference": points(row),
        "against": points(row["against"]),
    }
