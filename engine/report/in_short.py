"""The page's first paragraph: what the numbers say, a sentence each, only where there are numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median

from engine.report.plots import signed
from engine.report.scores import interval, mean

_FAILED = 0.2  # of the median over seeds


def in_short(results: Mapping, classes: Sequence[Mapping], generated: Mapping | None) -> list[str]:
    """Sentences in the order of their weight. classes: as `class_rows`; generated: as `generated_part`."""
    data, changes = results["data"], results.get("changes")
    parts = [
        _failed(results),
        _data(data, generated),
        _classes(classes, results),
        _best_arm(results),
        _changes(changes, results["delta"]),
    ]
    parts += [_labels(results["adapter"].get("validation"))]
    return [part for part in parts if part]


def _failed(results: Mapping) -> str:
    """A training that never began to learn decides a mean and widens an interval: the reader must know."""
    failed = []
    for name, arm in results["arms"].items():
        scores = [score or 0.0 for score in arm["map"]]
        usual = median(scores)
        at = zip(results["seeds"], scores, strict=True)
        failed += [f"“{name}” with seed {seed}" for seed, score in at if score < _FAILED * usual]
    if not failed:
        return ""
    return (
        f"Did not learn: {', '.join(failed)}, less than {_FAILED:.0%} of what its other seeds reach. What is said of "
        "such an arm says little; a lower learning rate or a longer warm-up may help."
    )


def _data(data: Mapping, generated: Mapping | None) -> str:
    train, test = (data.get(split, {}).get("images") for split in ("train", "test"))
    if not train or not test:
        return ""
    text = f"{train} labelled images to train on, {test} to test on."
    if generated:
        lost = ", ".join(f"{number} {name}" for name, number, _ in generated["parts"] if name != "used")
        text += f" Of {generated['planned']} generated images training used {generated['used']}"
        text += f" ({lost})." if lost else "."
    return text


def _classes(classes: Sequence[Mapping], results: Mapping) -> str:
    moved = sorted((row["moved"], row["name"]) for row in classes if row["moved"] is not None)
    if len(moved) < 2:
        return ""
    (low, last), (high, first) = moved[0], moved[-1]
    text = f"By class: from {signed(low)} AP (“{last}”) to {signed(high)} AP (“{first}”). "
    single = [one for one in results.get("delta_by_score", {}).get("per_class", {}).values() if one]
    if not single:
        return text + "These are means over seeds without intervals: they say where to look, not what is proved."
    settled = sum(one["verdict"] != "cannot tell" for one in single)
    return text + f"Of {len(single)} intervals of classes {settled} exclude zero; by chance one in 20 would."


def _best_arm(results: Mapping) -> str:
    """Which of the further arms came out highest: the reader asks at once."""
    others = {name: d for name, d in results["deltas"].items() if name != results["delta"]["treatment"]}
    if not others:
        return ""
    name = max(others, key=lambda arm: fmean(results["arms"][arm]["map"]))
    return (
        f"Of the other arms “{name}” came out highest: mAP {mean(results['arms'][name]['map'])}, "
        f"{signed(100 * others[name]['mean'])} to “{others[name]['baseline']}” "
        f"(95 % interval {interval(others[name])})."
    )


def _changes(changes: Mapping | None, delta: Mapping) -> str:
    if not changes:
        return ""
    images = changes["images"]
    return (
        f"Image by image, “{delta['treatment']}” finds more of the objects on {images['better']} test images, "
        f"fewer on {images['worse']}, as many on {images['same']}."
    )


def _labels(validation: Mapping | None) -> str:
    if not validation or validation.get("map") is None:
        return ""
    return (
        f"The adapter that wrote the labels reaches AP {mean([validation['map']])} (AP50 "
        f"{mean([validation.get('map50')])}) on {validation.get('images') or 'the'} held-out real images."
    )
