"""Generation under fire: a random SIGKILL every minute or so to a random process, and the same bytes at the end.

    uv run python bench/chaos.py --minutes 60 --kill-after 60 180 --workers 2

Draws a dataset twice with the same plan: once unbroken, and once while this program kills, at random times, the
process that drives the run or one of its workers (a driver that is gone is started again with the same command, as an
operator would). The broken run's drawer waits between images, so that a run of an hour costs little: what is drawn is
the same. At the end every file that a user gets is compared, and a summary is printed (docs/results/chaos.json with
--record). Exit code 1 where a byte differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import psutil

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "chaos.json"
PAUSE = "DE_CHAOS_PAUSE_S"  # read by chaos_drawer: seconds between two images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="length of the broken run, about")
    parser.add_argument("--kill-after", type=float, nargs=2, default=(60.0, 180.0), metavar=("LOW", "HIGH"), help="s")
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shard-size", type=int, default=10)
    parser.add_argument("--adapter-steps", type=int, default=150, help="of the adapter that labels")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--folder", type=Path, help="keep everything here; else a temporary folder")
    parser.add_argument("--record", action="store_true", help="write docs/results/chaos.json")
    parser.add_argument("--drive", nargs=2, metavar=("ROOT", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.drive:
        drive(Path(args.drive[0]), Path(args.drive[1]), args)
        return
    with tempfile.TemporaryDirectory() as temporary:
        summary = chaos(args.folder or Path(temporary), args)
    print(json.dumps(summary, indent=1))
    if args.record:
        RESULTS.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if summary["same_bytes"] else 1)


def chaos(root: Path, args: argparse.Namespace) -> dict:
    """Prepare, run unbroken, run broken, compare."""
    prepare(root, args)
    started = time.monotonic()
    if start(root, root / "unbroken", args, pause=0.0).wait():
        raise SystemExit("The unbroken run failed; see the messages above.")
    unbroken_s = time.monotonic() - started
    print(f"unbroken: {args.images} images in {timedelta(seconds=int(unbroken_s))}", flush=True)
    pause = max(0.0, (60 * args.minutes - unbroken_s) * args.workers / args.images)
    broken = run_under_fire(root, args, pause)
    expected, found = contents(root / "unbroken"), contents(root / "broken")
    return {
        "command": f"python bench/chaos.py --minutes {args.minutes:g} --images {args.images} --workers {args.workers} "
        f"--shard-size {args.shard_size} --seed {args.seed}",
        "images": args.images,
        "workers": args.workers,
        "files_compared": len(expected),
        "same_bytes": expected == found,
        "differing": sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))[:10],
        "left_behind": sorted(p.name for p in (root / "broken").rglob(".*")),
        "unbroken_minutes": round(unbroken_s / 60, 1),
        **broken,
    }


def prepare(root: Path, args: argparse.Namespace) -> None:
    """Scenes of the embedded world, and an adapter for the model that ships."""
    from engine.adapter.train import train_adapter
    from engine.config import load_settings
    from engine.data.world_folder import write_world
    from engine.ldm.diffusion import find_ldm

    if not (root / "data").exists():
        write_world(root / "data", 60, 20, 8)
    settings = load_settings(None, [f"adapter.steps={args.adapter_steps}"], find_ldm("world"))
    train_adapter(root / "data", "world", root / "adapter", settings)


def drive(root: Path, out: Path, args: argparse.Namespace) -> None:
    """The run itself, in a process of its own."""
    from engine.config import load_settings
    from engine.generation.run import generate
    from engine.ldm.diffusion import find_ldm

    overrides = [f"generation.shard_size={args.shard_size}", "generation.steps=10", "generation.batch_size=4"]
    settings = load_settings(None, overrides, find_ldm("world"))
    generate(root / "data", "world", root / "adapter", out, args.images, 0, settings, args.workers, "chaos_drawer:load")


def start(root: Path, out: Path, args: argparse.Namespace, pause: float) -> subprocess.Popen:
    """Start the driver, which starts the workers."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)])
    environment = os.environ | {"PYTHONPATH": path, PAUSE: str(pause), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--drive", str(root), str(out)]
    for name in ("images", "workers", "shard_size"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    return subprocess.Popen(command, env=environment)


def run_under_fire(root: Path, args: argparse.Namespace, pause: float) -> dict:
    """Kill and start again until the run ends by itself."""
    draw = random.Random(args.seed)
    out, killed, starts = root / "broken", Counter(), 1
    started = time.monotonic()
    run = start(root, out, args, pause)
    while True:
        try:
            code = run.wait(draw.uniform(*args.kill_after))
        except subprocess.TimeoutExpired:
            victim, role = choose(run, draw)
            victim.send_signal(signal.SIGKILL)
            killed[role] += 1
            minutes = (time.monotonic() - started) / 60
            done = len(list(out.glob("shards/[0-9]*")))
            print(f"{minutes:6.1f} min: SIGKILL to the {role} (process {victim.pid}); {done} shards done", flush=True)
            if role == "driver":
                run.wait()
                starts += 1
                run = start(root, out, args, pause)
            continue
        if code == 0:
            break
        starts += 1  # a shard that lost all its attempts to the kills: the operator gives the command again
        run = start(root, out, args, pause)
    return {
        "minutes": round((time.monotonic() - started) / 60, 1),
        "kills": dict(killed),
        "starts": starts,
        "seconds_between_kills": list(args.kill_after),
    }


def choose(run: subprocess.Popen, draw: random.Random) -> tuple[psutil.Process, str]:
    """The driver or one of its workers, each as likely."""
    driver = psutil.Process(run.pid)
    processes = [(driver, "driver"), *((child, "worker") for child in driver.children(recursive=True))]
    return draw.choice(processes)


def contents(out: Path) -> dict[str, str]:
    """sha256 of every file that a user gets, by name."""
    files = [out / "annotations.json", out / "manifest.json", *sorted((out / "images").iterdir())]
    return {str(f.relative_to(out)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()}


if __name__ == "__main__":
    main()
