"""What the adapter owes to its noise level, its taps, the words in training, and the number of labels.

    uv run python bench/ablations.py timestep --workers 2
    uv run python bench/ablations.py taps|prompt|labels

Each trains adapters on the embedded world, three seeds a value, everything else as the model recommends, and prints a
table of mAP on held-out scenes (docs/results/ablation-NAME.json with --record). In `prompt`, an adapter that was
trained with words reads words of the same kind at prediction; the caption and the template name the classes of the
objects in the picture, as they do for a generated picture, so these rows are told what is there. In `labels` the same
head is also trained on a from-scratch backbone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from world_adapters import Score, Training, run_all

from engine.config import load_settings
from engine.data.world_folder import write_world
from engine.ldm.diffusion import find_ldm

VALUES: dict[str, tuple] = {
    "timestep": (1, 50, 100, 200, 400),
    "taps": ("all", "down", "mid", "up"),
    "prompt": ("none", "caption", "template"),
    "labels": (50, 150, 500, 2000),
}
RESULTS = Path(__file__).parents[1] / "docs" / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ablation", choices=sorted(VALUES))
    parser.add_argument("--ldm", default="world", help="diffusion model's folder")
    parser.add_argument("--labels", type=int, default=150)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="trainings at once, one thread each")
    parser.add_argument("--record", action="store_true", help="write docs/results/ablation-NAME.json")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="section.key=value")
    args = parser.parse_args()
    rows: dict[str, list[Score]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for score in run_all(trainings_of(args, Path(folder)), args.workers):
            rows.setdefault(score.training.label, []).append(score)
            print(f"{score.training.label} seed {score.training.seed}: mAP {100 * score.metrics.map:.1f}", flush=True)
    print(f"| {args.ablation} | mAP per seed | mean | AP50 |\n|---|---|---|---|")
    for label, scores in rows.items():
        maps, maps50 = ([100 * value for value in values] for values in maps_of(scores))
        print(f"| {label} | {', '.join(f'{m:.1f}' for m in maps)} | {mean(maps):.1f} | {mean(maps50):.1f} |")
    if args.record:
        content = {
            "command": "python bench/ablations.py " + " ".join(sys.argv[1:]),
            "labels": args.labels,
            "test": args.test,
            "rows": {
                label: dict(zip(("map", "map50"), maps_of(scores), strict=True)) for label, scores in rows.items()
            },
        }
        path = RESULTS / f"ablation-{args.ablation}.json"
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def trainings_of(args: argparse.Namespace, folder: Path) -> list[Training]:
    """One a value and seed; for `labels` also from scratch."""
    trainings = []
    for value in VALUES[args.ablation]:
        labels = value if args.ablation == "labels" else args.labels
        data = folder / str(labels)
        if not data.exists():
            write_world(data, labels, 8, args.test)
        overrides = [] if args.ablation == "labels" else [f"adapter.{args.ablation}={value}"]
        settings = load_settings(None, [*overrides, *args.overrides], find_ldm(args.ldm))
        for kind in ("adapter", "scratch") if args.ablation == "labels" else ("adapter",):
            label = f"{value} {kind}" if args.ablation == "labels" else str(value)
            trainings += [Training(kind, args.ldm, data, settings, seed, label) for seed in range(args.seeds)]
    return trainings


def maps_of(scores: list[Score]) -> tuple[list[float], list[float]]:
    """mAP and AP50 of each seed."""
    return [score.metrics.map for score in scores], [score.metrics.map50 for score in scores]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
