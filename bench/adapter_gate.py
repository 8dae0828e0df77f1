"""The embedded model's gate: does the adapter beat the same head on a from-scratch backbone, on the same labels?

    uv run python bench/adapter_gate.py --heads fcos,retinanet,dino --seeds 3 --workers 2

Both train with the same head, boxes, augmentation, batch size and number of steps, and are scored on the same held-out
scenes. The from-scratch backbone is as large as makes it train at least as many weights as the adapter does. A third
kind, "stem", is the adapter without the diffusion model's features: its latent stem and head alone. Prints one row a
training and one a head and kind; --record writes them into the model's card.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from world_adapters import HEAD_OVERRIDES, Score, Training, run_all

from engine.config import load_settings
from engine.data.world_folder import write_world
from engine.ldm.card import GATE, write_card
from engine.ldm.diffusion import find_ldm

KINDS = ("adapter", "scratch", "stem")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ldm", default="world", help="diffusion model's folder")
    parser.add_argument("--heads", default="fcos", help="comma-separated; see adapter.head")
    parser.add_argument("--kinds", default="adapter,scratch", help=f"comma-separated of {', '.join(KINDS)}")
    parser.add_argument("--labels", type=int, default=150)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="trainings at once, one thread each")
    parser.add_argument(
        "--record",
        action="store_true",
        help="write gate.json and the card in the model's folder, beside the heads that are there",
    )
    parser.add_argument(
        "--times",
        action="store_true",
        help="only time the heads, a few steps each; --record writes their times",
    )
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="section.key=value")
    args = parser.parse_args()
    if args.times:
        time_heads(args)
        return
    scores: dict[str, dict[str, list[Score]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_world(Path(folder), args.labels, 8, args.test)
        for score in run_all(trainings_of(args, Path(folder)), args.workers):
            head, kind = score.training.settings.adapter.head, score.training.kind
            scores.setdefault(head, {}).setdefault(kind, []).append(score)
            print(row(score), flush=True)
    print(table(scores))
    if args.record:
        record(scores, args)


def time_heads(args: argparse.Namespace) -> None:
    """Milliseconds of CPU that a step of 16 and an image take with each head's adapter."""
    brief = argparse.Namespace(**vars(args) | {"kinds": "adapter", "seeds": 1, "overrides": ["adapter.steps=25"]})
    heads = {}
    print("| head | ms a step of 16 | ms an image |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        write_world(Path(folder), args.labels, 8, 64)
        for score in run_all(trainings_of(brief, Path(folder)), args.workers):
            head = score.training.settings.adapter.head
            heads[head] = {"step_seconds": score.step_seconds, "image_seconds": score.image_seconds}
            print(f"| {head} | {1000 * score.step_seconds:.0f} | {1000 * score.image_seconds:.1f} |", flush=True)
    if args.record:
        folder = find_ldm(args.ldm)
        gate = json.loads((folder / GATE).read_text(encoding="utf-8"))
        for head, times in heads.items():
            gate["heads"][head]["adapter"] |= times
        add_command(gate)
        (folder / GATE).write_text(json.dumps(gate, indent=1) + "\n", encoding="utf-8")
        write_card(folder)


def trainings_of(args: argparse.Namespace, data: Path) -> list[Training]:
    """One a seed, head and kind."""
    trainings = []
    for head in args.heads.split(","):
        overrides = [*HEAD_OVERRIDES.get(head, ()), f"adapter.head={head}", *args.overrides]
        settings = load_settings(None, overrides, find_ldm(args.ldm))
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            trainings += [
                Training(kind, args.ldm, data, settings, seed, f"{head} {kind}") for kind in args.kinds.split(",")
            ]
    return trainings


def row(score: Score) -> str:
    """One training in a line."""
    training, metrics = score.training, score.metrics
    return (
        f"{training.settings.adapter.head:10s} {training.kind:8s} seed {training.seed}: mAP {100 * metrics.map:5.1f}  "
        f"AP50 {100 * metrics.map50:5.1f}  AP75 {100 * metrics.map75:5.1f}  {score.parameters / 1e6:.2f} M trained  "
        f"{1000 * score.step_seconds:.0f} ms a step"
    )


def table(scores: dict[str, dict[str, list[Score]]]) -> str:
    """Markdown: one line a head and kind."""
    lines = [
        "| head | kind | mAP per seed | mean | AP50 | trained weights | ms a step | ms an image |",
        "|---" * 8 + "|",
    ]
    for head, kinds in scores.items():
        for kind, runs in kinds.items():
            maps = [100 * run.metrics.map for run in runs]
            lines.append(
                f"| {head} | {kind} | {', '.join(f'{m:.1f}' for m in maps)} | {mean(maps):.1f} "
                f"| {mean([100 * run.metrics.map50 for run in runs]):.1f} | {runs[0].parameters / 1e6:.2f} M "
                f"| {mean([1000 * run.step_seconds for run in runs]):.0f} "
                f"| {mean([1000 * run.image_seconds for run in runs]):.1f} |"
            )
    return "\n".join(lines)


def record(scores: dict[str, dict[str, list[Score]]], args: argparse.Namespace) -> None:
    """Write gate.json beside the model, and its card."""
    folder = find_ldm(args.ldm)
    heads = {
        head: {
            kind: {
                "map": [run.metrics.map for run in runs],
                "map50": [run.metrics.map50 for run in runs],
                "map75": [run.metrics.map75 for run in runs],
                "parameters": runs[0].parameters,
                "step_seconds": mean([run.step_seconds for run in runs]),
                "image_seconds": mean([run.image_seconds for run in runs]),
                "steps": runs[0].training.settings.adapter.steps,
            }
            for kind, runs in kinds.items()
        }
        for head, kinds in scores.items()
    }
    gate = {"labels": args.labels, "test": args.test, "commands": [], "heads": {}}
    if (folder / GATE).is_file():
        before = json.loads((folder / GATE).read_text(encoding="utf-8"))
        if (before["labels"], before["test"]) == (args.labels, args.test):
            gate = before  # heads that were measured one by one stand in one table
    gate["heads"].update(heads)
    add_command(gate)
    (folder / GATE).write_text(json.dumps(gate, indent=1) + "\n", encoding="utf-8")
    write_card(folder)


def add_command(gate: dict) -> None:
    """Note the command that was given, once."""
    command = "python bench/adapter_gate.py " + " ".join(sys.argv[1:])
    gate["commands"] = [*(c for c in gate["commands"] if c != command), command]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
