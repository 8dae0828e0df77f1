"""Writes `report.html`: one file that explains itself, without scripts and without anything fetched.

The template is rendered with autoescape, for class names and prompts come from files of others; a content policy in
the page forbids scripts and requests as well.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from engine.data.files import write_atomically
from engine.evaluation.results import SCORES, check_results
from engine.report.gallery import GalleryItem, pair_uris
from engine.report.pictures import CROWDED, label_colours
from engine.report.plots import arm_colours, class_plot, difference_plot, loss_plot, seeds_plot, signed

_MOST_CLASSES = 24  # bars; the table under them holds all
_TITLES = {
    "map": "mAP", "map50": "AP50", "map75": "AP75",
    "map_small": "small", "map_medium": "medium", "map_large": "large", "ar100": "AR100",
}  # fmt: skip


def write_report(
    results: Mapping,
    out: Path,
    gallery: Sequence[GalleryItem] = (),
    *,
    commands: Sequence[str] = (),
    title: str = "Does the generated data help?",
) -> Path:
    """Write out/report.html from the content of results.json and the pairs to show; returns its path.

    commands: what makes the run again, a line each. Raises ValueError for inconsistent results, DatasetError for a
    picture that cannot be read. Equal input gives equal bytes.
    """
    check_results(results)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    colours = label_colours(sorted({label for item in gallery for label in item.labels}))
    page = environment.get_template("report.html.j2").render(
        title=title,
        commands=list(commands),
        **_context(results),
        gallery=_pictures(gallery, colours),
        gallery_key=colours if any(len(item.labels) > CROWDED for item in gallery) else {},
    )
    out.mkdir(parents=True, exist_ok=True)
    path = out / "report.html"
    write_atomically(path, page.encode("utf-8", errors="replace"))
    return path


def _context(results: Mapping) -> dict:
    arms = results["arms"]
    order = list(results.get("arm_order", arms))
    colours = arm_colours(order)
    delta = results["delta"]
    classes = _classes(arms, order, colours)
    return {
        "verdict": _verdict(delta, arms, results),
        "colours": colours,
        "baseline": delta["baseline"],
        "differences": difference_plot(
            [
                (name, colours[name], 100 * d["mean"], *(100 * value for value in d["ci95"]))
                for name, d in ((name, results["deltas"][name]) for name in order if name in results["deltas"])
            ]
        ),
        "seeds_plot": seeds_plot(
            [(name, colours[name], _points(arms[name]["map"])) for name in order if _points(arms[name]["map"])],
            results["seeds"],
        ),
        "columns": [_TITLES[score] for score in SCORES],
        "arms": [_arm_row(name, arms[name], colours[name], results["deltas"].get(name)) for name in order],
        "class_bars": class_plot(_widest(classes, delta)) if classes else None,
        "classes": classes,
        "classes_left_out": max(0, len(classes) - _MOST_CLASSES),
        "losses": loss_plot([(name, colours[name], arms[name].get("loss_curve", [])) for name in order]),
        "generated": _generated(results["generated"]),
        "adapter_quality": _adapter_quality(results["adapter"].get("validation")),
        **{key: results[key] for key in ("adapter", "settings", "versions", "data", "seeds")},
    }


def _verdict(delta: Mapping, arms: Mapping, results: Mapping) -> dict:
    low, high = (signed(100 * value) for value in delta["ci95"])
    figure = f"{signed(100 * delta['mean'])} mAP"
    opening = {
        "helps": "The generated data helps",
        "hurts": "The generated data hurts",
        "cannot tell": "We cannot tell whether the generated data helps",
    }[delta["verdict"]]
    test = results["data"].get("test", {}).get("images")
    return {
        "tone": delta["verdict"].replace(" ", "-"),
        "opening": opening,
        "figure": figure,
        "interval": f"{low} to {high}",
        "advice": _advice(delta),
        "baseline": _mean(arms[delta["baseline"]]["map"]),
        "treatment": _mean(arms[delta["treatment"]]["map"]),
        "treatment_name": delta["treatment"],
        "seeds": len(results["seeds"]),
        "test_images": test,
    }


def _advice(delta: Mapping) -> str:
    """What would settle an open question; empty where it is settled."""
    if delta["verdict"] != "cannot tell" or "seeds_to_settle" not in delta:
        return ""
    if delta["seeds_to_settle"] is None:
        return (
            "More trainings would not settle a difference this small: the test images alone leave it open. "
            "A larger test split would narrow the interval."
        )
    return f"About {delta['seeds_to_settle']} seeds per arm would settle it, if the difference stays this large."


def _arm_row(name: str, arm: Mapping, colour: int, delta: Mapping | None) -> dict:
    seconds = _points(arm["seconds"], 1)
    return {
        "name": name,
        "colour": colour,
        "scores": [_with_spread(arm[score]) for score in SCORES],
        "train_images": arm.get("train_images"),
        "share": f"{100 * arm.get('generated_share', 0):.0f} %",
        "minutes": f"{sum(seconds) / len(seconds) / 60:.1f}" if seconds else "–",
        "difference": signed(100 * delta["mean"]) if delta else "–",
        "interval": " to ".join(signed(100 * value) for value in delta["ci95"]) if delta else "",
        "verdict": delta["verdict"] if delta else "baseline",
        "note": arm.get("notes", {}).get("note", ""),
    }


def _classes(arms: Mapping, order: Sequence[str], colours: Mapping[str, int]) -> list:
    """[(class, [(arm, colour, per-seed values in points)])], classes in the order of the dataset."""
    names = dict.fromkeys(name for arm in order for name in arms[arm].get("per_class", {}))
    return [
        (name, [(arm, colours[arm], _points(arms[arm].get("per_class", {}).get(name, []))) for arm in order])
        for name in names
    ]


def _widest(classes: list, delta: Mapping) -> list:
    """The classes that moved most between the two arms of the verdict, in their own order."""

    def moved(entry: tuple) -> float:
        means = {arm: statistics.fmean(values) for arm, _, values in entry[1] if values}
        if delta["baseline"] not in means or delta["treatment"] not in means:
            return -1.0
        return abs(means[delta["treatment"]] - means[delta["baseline"]])

    kept = sorted(range(len(classes)), key=lambda index: -moved(classes[index]))[:_MOST_CLASSES]
    return [classes[index] for index in sorted(kept)]


def _generated(generated: Mapping) -> dict | None:
    """Shares of a bar, and the reasons behind them."""
    planned = generated.get("planned", 0)
    if not planned:
        return None
    rejected = sum(generated.get("rejected", {}).values())
    sums = {outcome: sum(generated.get(outcome, {}).values()) for outcome in ("dropped", "failed")}
    parts = {"used": generated.get("kept", 0) - rejected, "rejected": rejected, **sums}
    listed = (("rejected", "rejected in review"), ("dropped", "dropped"), ("failed", "failed"))
    shown = ("planned", "kept", "boxes", "ignored", "dropped_boxes", "objects_per_class", *(key for key, _ in listed))
    return {
        "planned": planned,
        "parts": [(name, number, 100 * number / planned) for name, number in parts.items() if number or name == "used"],
        "reasons": [(words, reason, n) for key, words in listed for reason, n in generated.get(key, {}).items()],
        "boxes": generated.get("boxes"),
        "ignored": generated.get("ignored", 0),
        "dropped_boxes": generated.get("dropped_boxes", {}),
        "objects": generated.get("objects_per_class", {}),
        "more": {key: value for key, value in generated.items() if key not in shown},
    }


def _adapter_quality(validation: Mapping | None) -> dict | None:
    """What the card says of the adapter's labels on held-out real images, in points; None where it says nothing."""
    if not validation or validation.get("map") is None:
        return None
    return {
        "images": validation.get("images"),
        "scores": [(_TITLES[key], _mean([validation.get(key)])) for key in ("map", "map50", "map75")],
        "classes": [(name, _mean([value])) for name, value in validation.get("per_class", {}).items()],
    }


def _pictures(gallery: Sequence[GalleryItem], colours: dict[str, str]) -> dict[str, list[dict]]:
    groups: dict[str, list[dict]] = {"spread": [], "doubtful": []}
    for item in gallery:
        source, generated = pair_uris(item, colours)
        groups.setdefault(item.reason, []).append(
            {
                "source": source,
                "generated": generated,
                "caption": item.caption,
                "strength": f"{item.strength:.2f}",
                "objects": len(item.labels),
                "scores": _range(item.scores),
                "ignored": len(item.ignored_xywh),
                "used": item.used,
            }
        )
    return {reason: pictures for reason, pictures in groups.items() if pictures}


def _range(scores: Sequence[float]) -> str:
    return "" if not scores else f"{min(scores):.2f}" if len(scores) == 1 else f"{min(scores):.2f} to {max(scores):.2f}"


def _points(values: Sequence[float | None], factor: float = 100.0) -> list[float]:
    """What is defined, in points of 100."""
    return [factor * value for value in values if value is not None]


def _mean(values: Sequence[float | None]) -> str:
    points = _points(values)
    return f"{statistics.fmean(points):.1f}" if points else "–"


def _with_spread(values: Sequence[float | None]) -> tuple[str, str]:
    """Mean, and sample standard deviation where there are two values or more."""
    points = _points(values)
    return _mean(values), f"± {statistics.stdev(points):.1f}" if len(points) > 1 else ""
