"""Print a comparison's results.json as the tables of docs/results.md, or a line for each of several.

uv run python bench/results_table.py runs/bccd-comparison/results.json [--classes]
uv run python bench/results_table.py docs/results/world50.json docs/results/bccd10.json
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.errors import DatasetError
from engine.evaluation.results import read_results
from engine.evaluation.statistics import in_points, spread

STRONG = "strong_augmentation"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--classes", action="store_true", help="a column for the AP of each class")
    args = parser.parse_args()
    try:
        print_tables(args)
    except DatasetError as error:
        parser.error(str(error))


def print_tables(args: argparse.Namespace) -> None:
    if len(args.results) > 1:
        print_lines(args.results)
        return
    results = read_results(args.results[0])
    classes = list(results["arms"][results["baseline"]]["per_class"]) if args.classes else []
    heads = ["arm", "mAP (seeds)", "mAP", "AP50", "AP75", *classes]
    heads += [f"minus {results['baseline']}, 95 % interval", f"{results['treatment']} minus it"]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for name in results["arm_order"]:
        arm = results["arms"][name]
        scores = [arm["map"], arm["map50"], arm["map75"], *(arm["per_class"][c] for c in classes)]
        delta, against = results["deltas"].get(name), results.get("against", {}).get(name)
        cells = [name, ", ".join(percent(value) for value in arm["map"]), *map(mean, scores)]
        other = "" if not delta or delta["baseline"] == results["baseline"] else f", minus {delta['baseline']}"
        cells += [f"{words(delta)}{other}: {delta['verdict']}" if delta else "", words(against) if against else ""]
        print(f"| {' | '.join(cells)} |")
    if "scaling" in results:
        print_scaling(results["scaling"])
    counts = results["generated"]
    print(
        f"\ngenerated: {counts['planned']} planned, {counts['kept']} kept, dropped {counts['dropped']}, "
        f"failed {counts['failed']}, {counts['boxes']} boxes, {counts['ignored']} ignore regions; "
        f"review accepted {counts['accepted']}, rejected {counts['rejected']}"
    )
    validation = (results["adapter"] or {}).get("validation")
    if validation:
        print(f"adapter on held-out real images: mAP {percent(validation['map'])}, AP50 {percent(validation['map50'])}")
    seconds = sum(sum(arm["seconds"]) for arm in results["arms"].values())
    print(f"test images: {results['data']['test']['images']}; training time in all {seconds / 60:.0f} min")


def print_lines(paths: Sequence[Path]) -> None:
    """A line a comparison: the treatment against real data alone and strong augmentation, and the best of all arms."""
    heads = ("comparison", "labels", "seeds", "real", "real + DE", "minus real", f"minus {STRONG}", "best arm")
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for path in paths:
        results = read_results(path)
        scores = {name: spread(arm["map"]).mean for name, arm in results["arms"].items()}
        cells = [path.stem, results["data"]["train"]["images"], len(results["seeds"])]
        cells += [percent(scores[results[which]]) for which in ("baseline", "treatment")]
        cells.append(f"{words(results['delta'])}: {results['delta']['verdict']}")
        strong = results.get("against", {}).get(STRONG)
        best = max(scores, key=scores.__getitem__)
        cells += [words(strong) if strong else "", f"{best}, {percent(scores[best])}"]
        print(f"| {' | '.join(map(str, cells))} |")


def print_scaling(scaling: Mapping) -> None:
    print("\n| generated images | times the real ones | mAP (seeds) | mAP |\n|---|---|---|---|")
    for point in scaling["points"]:
        seeds = ", ".join(map(percent, point["map"]))
        print(f"| {point['images']} | {point['multiple']:.3g} | {seeds} | {mean(point['map'])} |")
    print(f"\n{scaling['note']} Stops paying: {scaling['stops_paying']}")


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def mean(values: Sequence[float]) -> str:
    return percent(spread(values).mean)


def words(delta: Mapping) -> str:
    return in_points(delta["mean"], delta["ci95"])


if __name__ == "__main__":
    main()
