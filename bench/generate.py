"""What an image with its boxes costs: this engine's sampler beside stock diffusers, measured interleaved in one run.

    uv run python bench/generate.py --record docs/results/generate_bench.json
    uv run python bench/generate.py --ldm sd2-random     # Stable Diffusion 2's size, 512 x 512, 50 steps; on CUDA

All rows draw the same images with the same steps, strength, guidance, eta, prompts and seeds. Every round runs all rows
once; a ratio is the median over the rounds of the quotient within a round. On a CPU the time is that of the process
(one thread, which others on the machine do not add to), on CUDA it is the clock's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from sd2_random import SIZES, build
from stock import Stock
from torch.utils.flop_counter import FlopCounterMode

from engine.adapter.adapter import Adapter, build_reader, load_adapter
from engine.config import load_settings
from engine.data.dataset import Dataset, read_dataset
from engine.data.world_folder import write_world
from engine.generation.draw import AdapterDrawer, Drawn
from engine.generation.drawing import ImageWriter
from engine.generation.plan import PlannedItem, make_plan
from engine.ldm.diffusion import LatentDiffusion, choose_device, find_ldm, load_ldm
from engine.ldm.taps import Capture
from engine.sections import Settings

STOCK_BATCHES = (4, 8, 16)
GOALS = {"stock 1": (1.9, 4.0), "stock best": (1.15, 1.25)}  # on a CPU, on CUDA


@dataclasses.dataclass
class Bench:
    """Makes what is compared. All models have the same weights."""

    args: argparse.Namespace
    device: torch.device
    dataset: Dataset

    def settings(self, dtype: str, compiled: bool, share: float) -> Settings:
        a = self.args
        overrides = [
            f"generation.{n}_{end}={getattr(a, n)}" for n in ("strength", "guidance", "eta") for end in ("min", "max")
        ]
        overrides += [
            f"generation.steps={a.steps}",
            f"generation.rows_per_call={a.rows}",
            f"generation.batch_size={a.batch}",
        ]
        overrides += [f"ldm.dtype={dtype}", f"ldm.compile={str(compiled).lower()}", f"ldm.resolution={a.size}"]
        overrides += [f"generation.guidance_share={share}"]
        return load_settings(None, overrides, None if a.ldm in SIZES else find_ldm(a.ldm))

    def drawer(self, dtype: str, compiled: bool = False, share: float = 1.0) -> AdapterDrawer:
        """A drawer of a model of its own."""
        settings = self.settings(dtype, compiled, share)
        if self.args.ldm in SIZES:
            ldm = build(self.args.ldm, getattr(torch, dtype), self.device)
        else:
            ldm = load_ldm(self.args.ldm, dtype=dtype, device=str(self.device))
        return AdapterDrawer(self.dataset, ldm, self._adapter(ldm, settings), settings)

    def _adapter(self, ldm: LatentDiffusion, settings: Settings) -> Adapter:
        if self.args.adapter:
            return load_adapter(self.args.adapter, ldm)
        torch.manual_seed(0)
        reader = build_reader(settings.adapter, settings.detr, len(self.dataset.categories), ldm).to(ldm.device).eval()
        classes = [{"id": c.id} for c in self.dataset.categories]
        return Adapter(reader.requires_grad_(False), {"timestep": 1, "weights_sha256": "0" * 64, "classes": classes})

    def items(self, drawer: AdapterDrawer) -> tuple[PlannedItem, ...]:
        dtype = str(drawer.ldm.dtype).removeprefix("torch.")
        return make_plan(self.dataset, self.args.images, 0, self.settings(dtype, False, 1.0), drawer.identity).items

    def clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def time(self, function: Callable[[], object]) -> float:
        """Seconds of one run."""
        started = self.clock()
        function()
        return self.clock() - started


def main() -> None:
    args = arguments()
    torch.set_num_threads(1 if args.device == "cpu" else torch.get_num_threads())
    with tempfile.TemporaryDirectory() as folder:
        write_world(Path(folder) / "data", args.images, 1, 1)
        bench = Bench(args, torch.device(args.device), read_dataset(Path(folder) / "data", "train"))
        result = {"machine": machine(bench.device), "settings": settings_of(args)}
        print(json.dumps(result, indent=1), flush=True)
        base = bench.drawer(args.dtype)
        items = bench.items(base)
        rows, result["compile_seconds"] = rows_of(bench, base, items)
        seconds = measured(bench, rows, args.rounds)
        result["rows"] = {name: row_of(name, seconds, len(items)) for name in seconds}
        result["parts"] = parts(bench, base, items)
        result["boxes_share"] = boxes_share(bench, base, items)
        result["host_ms_per_image"] = host_ms(bench, base, Path(folder))
        result["flops"] = flops(bench, base, items, min(row["seconds"] for row in result["rows"].values()))
        if args.adapter:
            result["guidance_share"] = effect_of_share(bench, base, items)
    print(table(result, bench.device))
    if args.record:
        args.record.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ldm", default="world", help=f"folder of a model, or {', '.join(SIZES)}")
    parser.add_argument(
        "--adapter", type=Path, help="folder of a trained adapter; without one, a head of random weights"
    )
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of a full run; 20, and 50 for a model of random weights")
    parser.add_argument("--strength", type=float, default=0.45)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--eta", type=float, default=0.1)
    parser.add_argument("--size", type=int, help="pixels; 64, and 512 for a model of random weights")
    parser.add_argument("--rows", type=int, default=16, help="generation.rows_per_call")
    parser.add_argument("--batch", type=int, default=16, help="generation.batch_size")
    parser.add_argument("--dtype", help="of the base row and of stock; float32, on CUDA bfloat16")
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled rows")
    parser.add_argument("--record", type=Path, help="write the numbers as json")
    args = parser.parse_args()
    args.device = str(choose_device("auto"))
    if args.ldm == "sd2-random" and args.device != "cuda":
        parser.error("sd2-random needs CUDA; try sd2-random-tiny here")
    large = args.ldm in SIZES
    args.steps, args.size = args.steps or (50 if large else 20), args.size or (512 if large else 64)
    args.dtype = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")
    return args


def rows_of(bench: Bench, base: AdapterDrawer, items) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """What is timed, by name, each warm; and seconds that compiling took."""
    best = min(STOCK_BATCHES, key=lambda size: bench.time(lambda: Stock(base, size).draw(items)))
    stock = {
        "stock 1": Stock(base, 1),
        f"stock best ({best})": Stock(base, best),
        f"stock best ({best}), saved and loaded": Stock(base, best, through_files=True),
    }
    rows: dict[str, Callable[[], object]] = {name: (lambda s=s: s.draw(items)) for name, s in stock.items()}
    options = {"ours": (bench.args.dtype, False, 1.0), "ours, guidance_share 0.6": (bench.args.dtype, False, 0.6)}
    if bench.args.dtype != "bfloat16":
        options["ours, bf16"] = ("bfloat16", False, 1.0)
    if not bench.args.no_compile:
        options["ours, compile"] = (bench.args.dtype, True, 1.0)
        if bench.args.dtype != "bfloat16":
            options["ours, bf16 + compile"] = ("bfloat16", True, 1.0)
        options["ours, bf16 + compile + guidance_share 0.6"] = ("bfloat16", True, 0.6)
    compiling = {}
    for name, option in options.items():
        drawer = base if name == "ours" else bench.drawer(*option)
        rows[name] = lambda drawer=drawer: list(drawer.draw(items, bench.args.batch))
        started = time.perf_counter()
        list(drawer.draw(items[:2], 2))
        if option[1]:
            compiling[name] = time.perf_counter() - started
    return rows, compiling


def measured(bench: Bench, rows: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each row in each round. Nothing is remembered from round to round but compiled code."""
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for index in range(rounds):
        for name, draw in rows.items():
            seconds[name].append(bench.time(draw))
        print(f"round {index + 1}: " + ", ".join(f"{name} {s[-1]:.2f} s" for name, s in seconds.items()), flush=True)
    return seconds


def row_of(name: str, seconds: dict[str, list[float]], images: int) -> dict:
    own = statistics.median(seconds[name])
    against = {
        short: statistics.median(a / b for a, b in zip(seconds[other], seconds[name], strict=True))
        for other in seconds
        for short in GOALS
        if other == short or (other.startswith(short) and other.endswith(")"))
    }
    return {"seconds": own, "images_per_second": images / own, "times_as_fast_as": against, "rounds": seconds[name]}


def boxes_share(bench: Bench, base: AdapterDrawer, items) -> dict[str, float]:
    """Share of the time that reading features and the head take, at the run's steps and at 50."""
    shares = {}
    for steps in sorted({bench.args.steps, 50}):
        how, base.how = base.how, dataclasses.replace(base.how, steps=steps)
        watch = Stopwatch(bench.clock)
        with patch.object(Capture, "grouped", watch.timing(Capture.grouped)):
            with patch.object(base.adapter, "detect", watch.timing(base.adapter.detect)):
                total = bench.time(lambda: list(base.draw(items, bench.args.batch)))
        base.how = how
        shares[str(steps)] = watch.seconds / total
    return shares


@dataclasses.dataclass
class Stopwatch:
    """Adds up what calls of functions take."""

    clock: Callable[[], float]
    seconds: float = 0.0

    def timing(self, function: Callable) -> Callable:
        def timed(*args, **options):
            started = self.clock()
            try:
                return function(*args, **options)
            finally:
                self.seconds += self.clock() - started

        return timed


def parts(bench: Bench, base: AdapterDrawer, items) -> dict[str, dict[str, float]]:
    """Share of the time that each part of the model takes, of this sampler and of stock at the same batch."""
    draws = {
        "ours": lambda: list(base.draw(items, bench.args.batch)),
        f"stock {bench.args.batch}": lambda: Stock(base, bench.args.batch).draw(items),
    }
    places = {
        "denoiser": (base.ldm.denoiser, "forward"),
        "image encoder": (base.ldm.vae, "encode"),
        "image decoder": (base.ldm.vae, "decode"),
        "text encoder": (base.ldm.pipeline.text_encoder, "forward"),
        "head": (base.adapter, "detect"),
    }
    shares = {}
    for name, draw in draws.items():
        watches = {part: Stopwatch(bench.clock) for part in places}
        with ExitStack() as stack:
            for part, (owner, method) in places.items():
                timed = watches[part].timing(getattr(owner, method))
                stack.enter_context(patch.object(owner, method, timed))
            total = bench.time(draw)
        shares[name] = {part: watch.seconds / total for part, watch in watches.items()}
    return shares


def host_ms(bench: Bench, base: AdapterDrawer, folder: Path) -> dict[str, float]:
    """What the writing thread works for an image (JPEG, record, sha256, write): of the bench's size and of 512."""
    result = {}
    for size in sorted({bench.args.size, 512}):
        items = [dataclasses.replace(item, width=size, height=size) for item in bench.items(base)]
        plan = make_plan(bench.dataset, len(items), 0, bench.settings(bench.args.dtype, False, 1.0), base.identity)
        rng = np.random.default_rng(0)
        coarse = rng.uniform(0, 255, (size // 16, size // 16, 3)).repeat(16, 0).repeat(16, 1)
        image = np.clip(coarse + rng.normal(0, 8, coarse.shape), 0, 255).astype(np.uint8)
        corner = rng.uniform(0, size / 2, (10, 2))
        boxes = np.concatenate([corner, corner + size / 4], axis=1)
        drawn = Drawn(image, boxes, rng.uniform(0.5, 1, 10), np.full(10, bench.dataset.categories[0].id))
        work = folder / f"host{size}"
        (work / "images").mkdir(parents=True)
        with ImageWriter(work, plan) as writer:
            for item in items * 4:
                writer.take(item, drawn)
        result[str(size)] = 1000 * writer.cpu_seconds / (4 * len(items))
    return result


def flops(bench: Bench, base: AdapterDrawer, items, seconds: float) -> dict[str, float]:
    """TFLOP an image, counted end to end, and the matrix rate of this device in the base row's dtype and bfloat16."""
    with FlopCounterMode(display=False) as counter:
        list(base.draw(items, bench.args.batch))
    an_image = counter.get_total_flops() / len(items) / 1e12
    rates = {str(d).removeprefix("torch."): matrix_rate(bench, d) for d in {base.ldm.dtype, torch.bfloat16}}
    best = max(rates.values())
    return {
        "tflop_per_image": an_image,
        "matrix_tflop_per_second": rates,
        "fastest_row_share_of_best_rate": an_image * len(items) / seconds / best,
    }


def matrix_rate(bench: Bench, dtype: torch.dtype) -> float:
    side = 8192 if bench.device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=bench.device, dtype=dtype) for _ in range(2))
    a @ b
    return max(2 * side**3 * 4 / bench.time(lambda: [a @ b for _ in range(4)]) / 1e12 for _ in range(5))


def effect_of_share(bench: Bench, base: AdapterDrawer, items) -> dict[str, dict[str, float]]:
    """What guidance in a share of the steps changes: pixels, and how far the boxes still are those of the sources."""
    from engine.evaluation.coco_map import evaluate

    result, images = {}, {}
    for share in (1.0, 0.8, 0.6, 0.4, 0.0):
        how, base.how = base.how, dataclasses.replace(base.how, guidance_share=share)
        drawn = list(base.draw(items, bench.args.batch))
        base.how = how
        images[share] = np.stack([each.image for each in drawn]).astype(float)
        found = [
            {
                "image_id": item.source_image_id,
                "category_id": int(category),
                "bbox": [*map(float, box[:2]), float(box[2] - box[0]), float(box[3] - box[1])],
                "score": float(score),
            }
            for item, each in zip(items, drawn, strict=True)
            for box, score, category in zip(each.boxes_xyxy, each.scores, each.category_ids, strict=True)
        ]
        metrics = evaluate(bench.dataset, found)
        difference = np.abs(images[share] - images[1.0]).mean()
        result[str(share)] = {"map": metrics.map, "map50": metrics.map50, "mean_difference_in_levels": difference}
    return result


def machine(device: torch.device) -> dict[str, str | int]:
    """Which one it is."""
    words = [
        line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    found = {"cpu": words[0] if words else "unknown", "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    gpu = {"gpu": torch.cuda.get_device_name()} if device.type == "cuda" else {}
    return found | gpu | {"torch": torch.__version__}


def settings_of(args: argparse.Namespace) -> dict:
    names = ("ldm", "images", "rounds", "steps", "strength", "guidance", "eta", "size", "rows", "batch", "dtype")
    return {name: getattr(args, name) for name in names} | {"trained_adapter": bool(args.adapter)}


def table(result: dict, device: torch.device) -> str:
    """Markdown."""
    lines = ["| | images/s | x stock 1 | x stock best |", "|---|---|---|---|"]
    for name, row in result["rows"].items():
        ratios = [f"{row['times_as_fast_as'][short]:.2f}" for short in GOALS]
        lines.append(f"| {name} | {row['images_per_second']:.2f} | {' | '.join(ratios)} |")
    goals = ", ".join(f"{goal[device.type == 'cuda']} of {name}" for name, goal in GOALS.items())
    lines += ["", f"Goals of ours: {goals}."]
    lines += [f"Compiling (before the first image): {name} {s:.0f} s." for name, s in result["compile_seconds"].items()]
    for name, shares in result["parts"].items():
        told = ", ".join(f"{part} {100 * share:.1f} %" for part, share in shares.items())
        lines.append(f"Of the time of {name}: {told}.")
    lines += [f"Boxes cost {100 * share:.1f} % of the time at {n} steps." for n, share in result["boxes_share"].items()]
    lines += [f"Host work at {n} px: {ms:.2f} ms an image." for n, ms in result["host_ms_per_image"].items()]
    f = result["flops"]
    rates = ", ".join(f"{rate:.2f} in {dtype}" for dtype, rate in f["matrix_tflop_per_second"].items())
    lines.append(f"{f['tflop_per_image']:.4f} TFLOP an image; matrix rate {rates} TFLOP/s.")
    lines.append(f"The fastest row reaches {100 * f['fastest_row_share_of_best_rate']:.0f} % of the best matrix rate.")
    for share, row in result.get("guidance_share", {}).items():
        lines.append(
            f"guidance_share {share}: boxes against the sources' AP {100 * row['map']:.1f}, "
            f"AP50 {100 * row['map50']:.1f}; pixels {row['mean_difference_in_levels']:.2f} levels from 1.0."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
