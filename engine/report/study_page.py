"""`study.html`: the arms of every case of a study as intervals, one axis for all cases, and the table behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from engine.data.files import write_atomically
from engine.report.plots import arm_colours, difference_plot, signed
from engine.report.scores import interval
from engine.report.templates import open_templates

FILE = "study.html"


def write_study_page(out: Path, study: Mapping) -> Path:
    """Write `out`/study.html, one self-contained file, from the content of study.json; returns its path."""
    rows = study["rows"]
    colours = arm_colours(list(dict.fromkeys(row["arm"] for row in rows)))
    span = [100 * value for row in rows for value in row["ci95"]]
    cases = [_case(name, list(of_case), colours, span) for name, of_case in groupby(rows, lambda row: row["case"])]
    page = open_templates().get_template("study.html.j2").render(title=f"Study: {study['study']}", cases=cases)
    path = out / FILE
    write_atomically(path, page.encode("utf-8", errors="replace"))
    return path


def _case(name: str, rows: Sequence[Mapping], colours: Mapping[str, int], span: Sequence[float]) -> dict:
    first = rows[0]
    intervals = [
        (
            row["label"].replace(", minus ", "\nminus "),
            colours[row["arm"]],
            *(100 * v for v in (row["mean"], *row["ci95"])),
        )
        for row in rows
    ]
    ours = next((row for row in rows if row["arm"] == "real+de"), None)
    return {
        "name": name,
        "images": first["train_images"],
        "seeds": first["seeds"],
        "adapter": _percent(first["adapter_map"]),
        "words": None if ours is None else f"{signed(100 * ours['mean'])} mAP ({interval(ours)}): {ours['verdict']}",
        "plot": difference_plot(intervals, f"{name}: each arm minus real data alone, mAP points", span),
        "rows": [_row(row, colours) for row in rows],
    }


def _row(row: Mapping, colours: Mapping[str, int]) -> dict:
    return {
        **{key: row[key] for key in ("label", "verdict", "against")},
        "colour": colours[row["arm"]],
        "real": _percent(row["baseline_map"]),
        "map": _percent(row["map"]),
        "difference": signed(100 * row["mean"]),
        "range": interval(row),
        "ahead": row["against"] and signed(100 * row["against"]["mean"]),
        "ahead_range": row["against"] and interval(row["against"]),
    }


def _percent(score: float | None) -> str:
    return "–" if score is None else f"{100 * score:.1f}"
