"""The difference of any two arms of a finished comparison, with its interval; results.json has those to the baselines.

    uv run python bench/arm_difference.py runs/wcompare --real runs/w150 strong_augmentation+de strong_augmentation

prints the first minus the second, from the detections that `de compare` keeps of every training.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from engine.data.dataset import read_dataset
from engine.evaluation.matching import image_results
from engine.evaluation.resampled import difference, resample
from engine.evaluation.results import read_results
from engine.evaluation.statistics import in_points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", type=Path, help="--out of de compare")
    parser.add_argument("arm")
    parser.add_argument("minus")
    parser.add_argument("--real", type=Path, required=True, help="its dataset folder")
    args = parser.parse_args()
    results, test = read_results(args.comparison / "results.json"), read_dataset(args.real, "test")
    if results["data"]["test"]["sha256"] != test.digest():
        parser.error(f"{args.real} holds other test images than {args.comparison} was scored on.")

    def scored(arm: str):
        folder, seeds = args.comparison / "arms" / arm, results["seeds"]
        kept = [json.loads((folder / f"seed-{seed}.json").read_text(encoding="utf-8")) for seed in seeds]
        return resample([image_results(test, one["detections"]) for one in kept], results["delta"]["resamples"])

    found = difference(scored(args.minus), scored(args.arm))
    seeds = ", ".join(f"{100 * value:+.1f}" for value in found.per_seed)
    print(f"{args.arm} minus {args.minus}: {in_points(found.mean, found.ci95)}: {found.verdict} (seeds {seeds})")


if __name__ == "__main__":
    main()
