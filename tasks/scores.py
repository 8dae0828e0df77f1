"""The answer of a comparison in small values: for the terminal, for Prefect's artifacts, for DVC's plots."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Comparison:
    """Real + generated minus real, in mAP from 0 to 1: mean and 95 % interval; and where the report is.

    advice: what would settle an open question, in words; empty where it is settled.
    """

    report: str
    mean: float
    low: float
    high: float
    verdict: str
    advice: str = ""


def summarise(results: dict, out: Path) -> Comparison:
    """The answer in one small value; `results` is the content of results.json."""
    from engine.report.scores import advice

    delta = results["delta"]
    low, high = delta["ci95"]
    return Comparison(str(Path(out) / "report.html"), delta["mean"], low, high, delta["verdict"], advice(delta))


def verdict_line(comparison: Comparison) -> str:
    """One sentence for the terminal."""
    return (
        f"Real + generated minus real: {100 * comparison.mean:+.1f} mAP "
        f"(95 % interval {100 * comparison.low:+.1f} to {100 * comparison.high:+.1f}): {comparison.verdict}."
    )


def write_plot_data(results: dict, out: Path) -> Path:
    """The scores as a flat table for `dvc plots`: one row per arm and seed. Returns its path."""
    rows = [
        {"arm": name, "seed": seed, "map": score, "map50": score50}
        for name, arm in results["arms"].items()
        for seed, score, score50 in zip(results["seeds"], arm["map"], arm["map50"], strict=True)
    ]
    path = Path(out) / "plots.json"
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return path


def percent(scores: list[float | None]) -> str:
    """Scores from 0 to 1 as text in percent."""
    return ", ".join("-" if score is None else f"{100 * score:.1f}" for score in scores)
