"""What the report says of the arms' scores: the verdict, the table of arms, the classes, the curves."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from engine.evaluation.results import SCORES
from engine.evaluation.statistics import MOST_SEEDS, NORMAL_975
from engine.report.plots import signed
from engine.report.unit_plot import Curve, unit_plot

MOST_BARS = 12  # classes with bars and curves; the table holds all
_MOST_ARMS = 4  # beyond, bars and curves show the two arms of the verdict only
TITLES = {
    "map": "mAP", "map50": "AP50", "map75": "AP75",
    "map_small": "small", "map_medium": "medium", "map_large": "large", "ar100": "AR100",
}  # fmt: skip
_OPENINGS = {
    "helps": "The generated data helps",
    "hurts": "The generated data hurts",
    "cannot tell": "We cannot tell whether the generated data helps",
}


def verdict(results: Mapping) -> dict:
    """The answer in one sentence, with its interval and what is behind it."""
    delta, arms = results["delta"], results["arms"]
    return {
        "tone": delta["verdict"].replace(" ", "-"),
        "opening": _OPENINGS[delta["verdict"]],
        "figure": f"{signed(100 * delta['mean'])} mAP",
        "interval": interval(delta),
        "advice": advice(delta),
        "baseline": mean(arms[delta["baseline"]]["map"]),
        "treatment": mean(arms[delta["treatment"]]["map"]),
        "treatment_name": delta["treatment"],
        "seeds": len(results["seeds"]),
        "test_images": results["data"].get("test", {}).get("images"),
    }


def advice(delta: Mapping) -> str:
    """What would settle an open question; empty where it is settled."""
    if delta["verdict"] != "cannot tell" or "seeds_to_settle" not in delta:
        return ""
    if delta["seeds_to_settle"] is None:
        # Files from before this was told apart have no lasting_error: all of image_error was taken for it.
        lasting = delta.get("lasting_error", delta.get("image_error", 0.0))
        if NORMAL_975 * lasting < abs(delta["mean"]):
            return f"More than {MOST_SEEDS} seeds per arm would be needed to settle a difference this small."
        return (
            "More trainings would not settle a difference this small: the test images alone leave it open. "
            "A larger test split would narrow the interval."
            if lasting
            else "No number of trainings would settle it: on average the arms do not differ."
        )
    return f"About {delta['seeds_to_settle']} seeds per arm would settle it, if the difference stays this large."


def drawn_arms(results: Mapping, order: Sequence[str]) -> list[str]:
    """The arms that bars and curves show: all, or the two of the verdict where all would be too many."""
    pair = (results["delta"]["baseline"], results["delta"]["treatment"])
    return [name for name in order if len(order) <= _MOST_ARMS or name in pair]


def defined_scores(arms: Mapping) -> list[str]:
    """The scores that some arm has: the test images may hold no object of a size."""
    return [score for score in SCORES if any(in_points(arm[score]) for arm in arms.values())]


def arm_row(name: str, arm: Mapping, colour: int, delta: Mapping | None, columns: Sequence[str]) -> dict:
    """One line of the table of arms. delta: its difference to the baseline; columns: the scores to list."""
    seconds = in_points(arm["seconds"], 1)
    return {
        "name": name,
        "colour": colour,
        "scores": [_with_spread(arm[score]) for score in columns],
        "train_images": arm.get("train_images"),
        "share": f"{100 * arm.get('generated_share', 0):.0f} %",
        "minutes": f"{sum(seconds) / len(seconds) / 60:.1f}" if seconds else "–",
        "difference": signed(100 * delta["mean"]) if delta else "–",
        "interval": interval(delta) if delta else "",
        "verdict": delta["verdict"] if delta else "baseline",
        "note": arm.get("notes", {}).get("note", ""),
    }


def difference_rows(
    deltas: Mapping, order: Sequence[str], colours: Mapping[str, int], baseline: str | None = None
) -> list[tuple]:
    """(arm, colour, mean, low, high) in points, for `difference_plot`. Given the `baseline` that goes without saying,
    an arm that is measured against another says so in a second line."""

    def labelled(name: str) -> str:
        other = deltas[name]["baseline"]
        return name if baseline in (None, other) else f"{name}\nminus “{other}”"

    return [
        (labelled(name), colours[name], *(100 * value for value in (deltas[name]["mean"], *deltas[name]["ci95"])))
        for name in order
        if name in deltas
    ]


def score_difference_rows(results: Mapping, classes: Sequence[str], colours: Mapping[str, int]) -> list[tuple]:
    """(score or class, colour, mean, low, high) in points, of the treatment, for `difference_plot`; what has no
    interval is left out."""
    by_score, delta = results.get("delta_by_score"), results["delta"]
    if not by_score:
        return []
    shown = {"mAP": delta, "AP50": by_score["map50"], "AP75": by_score["map75"]}
    shown |= {f"AP of {name}": by_score["per_class"].get(name) for name in classes}
    colour = colours[delta["treatment"]]
    return [
        (name, colour, *(100 * value for value in (one["mean"], *one["ci95"]))) for name, one in shown.items() if one
    ]


def class_rows(results: Mapping, order: Sequence[str], colours: Mapping[str, int]) -> list[dict]:
    """One entry a class, in the order of the dataset: name, values: [(arm, colour, points per seed)], moved: mean of
    the treatment minus the baseline's, None where a class has no score; interval: its 95 % interval in words, "" where
    there is none."""
    arms, delta = results["arms"], results["delta"]
    single = results.get("delta_by_score", {}).get("per_class", {})
    rows = []
    for name in dict.fromkeys(name for arm in order for name in arms[arm].get("per_class", {})):
        values = {arm: in_points(arms[arm].get("per_class", {}).get(name, [])) for arm in order}
        before, after = values[delta["baseline"]], values[delta["treatment"]]
        moved = statistics.fmean(after) - statistics.fmean(before) if before and after else None
        shown = [(arm, colours[arm], values[arm]) for arm in order]
        words = interval(single[name]) if single.get(name) else ""
        rows.append({"name": name, "values": shown, "moved": moved, "interval": words})
    return rows


def most_moved(rows: Sequence[Mapping]) -> list[Mapping]:
    """The classes that moved most between the two arms of the verdict, in their own order."""
    order = sorted(range(len(rows)), key=lambda i: -1.0 if rows[i]["moved"] is None else -abs(rows[i]["moved"]) - 1)
    return [rows[index] for index in sorted(order[:MOST_BARS])]


def recall_plots(
    results: Mapping, arms: Sequence[str], colours: Mapping[str, int], classes: Sequence[str]
) -> dict | None:
    """Precision against recall: mean over the classes, and one plot a class. None without the curves."""
    curves = results.get("precision_recall", {}).get("arms", {})
    curves = {arm: curves[arm] for arm in arms if arm in curves}
    if not any(arm.get("mean") for arm in curves.values()):
        return None

    def plot(label: str, lines: Mapping[str, Sequence[float] | None]):
        steps = [
            Curve(name, colours[name], [(k / (len(line) - 1), p) for k, p in enumerate(line)])
            for name, line in lines.items()
            if line
        ]
        return unit_plot(steps, f"Precision against recall, {label}", "recall", upright="precision")

    by_class = {name: {arm: curves[arm]["per_class"].get(name) for arm in curves} for name in classes}
    return {
        "mean": plot("mean over classes", {arm: curve["mean"] for arm, curve in curves.items()}),
        "classes": [(name, plot(name, lines)) for name, lines in by_class.items() if any(lines.values())]
        if len(classes) > 1
        else [],
        "iou": results["precision_recall"].get("iou", 0.5),
    }


def interval(delta: Mapping) -> str:
    """'-0.4 to +1.2', in points."""
    return " to ".join(signed(100 * value) for value in delta["ci95"])


def in_points(values: Sequence[float | None], factor: float = 100.0) -> list[float]:
    """What is defined, in points of 100."""
    return [factor * value for value in values if value is not None]


def mean(values: Sequence[float | None]) -> str:
    """To one decimal, in points; a dash where nothing is defined."""
    points = in_points(values)
    return f"{statistics.fmean(points):.1f}" if points else "–"


def _with_spread(values: Sequence[float | None]) -> tuple[str, str]:
    """Mean, and sample standard deviation where there are two values or more."""
    points = in_points(values)
    return mean(values), f"± {statistics.stdev(points):.1f}" if len(points) > 1 else ""
