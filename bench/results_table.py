"""Print a comparison's results.json as the tables of docs/results.md.

uv run python bench/results_table.py runs/bccd-comparison/results.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from engine.evaluation.results import read_results
from engine.evaluation.statistics import spread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    results = read_results(parser.parse_args().results)
    classes = list(results["arms"][results["baseline"]]["per_class"])
    print(f"| arm | mAP (seeds) | mAP | AP50 | {' | '.join(classes)} | minus {results['baseline']}, 95 % interval |")
    print("|---|---|---|---|" + "---|" * (len(classes) + 1))
    for name in results["arm_order"]:
        arm = results["arms"][name]
        cells = [name, ", ".join(percent(v) for v in arm["map"]), mean(arm["map"]), mean(arm["map50"])]
        cells += [mean(arm["per_class"][c]) for c in classes]
        delta = results["deltas"].get(name)
        cells.append(difference(delta) if delta else "")
        print("| " + " | ".join(cells) + " |")
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


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def mean(values: list[float]) -> str:
    return percent(spread(values).mean)


def difference(delta: dict) -> str:
    low, high = (100 * v for v in delta["ci95"])
    return f"{100 * delta['mean']:+.1f} ({low:+.1f} to {high:+.1f}): {delta['verdict']}"


if __name__ == "__main__":
    main()
