"""What the data plane costs: planning, resuming, merging, exporting and evaluating, by size.

uv run python bench/data_plane.py --record      # an hour at most; writes docs/results/data_plane.json
uv run python bench/data_plane.py --only merge --record --scratch /big/disk     # one case anew, the others as recorded
uv run python bench/data_plane.py --quick       # seconds

Every case runs in a process of its own. `peak` is the most memory it ever held (VmHWM), `for the work` the part of it
that came after the imports and the input; the exponents are slopes of the logarithm over log size: 1 is linear. On a
machine that others use too, CPU seconds tell more than seconds. The shards are synthetic: tiny pictures, shared by hard
links, and records as the generation writes them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "data_plane.json"
SHARD_IMAGES, BOXES_PER_IMAGE = 1000, 7
CLASSES = 80
GROWING = ("seconds", "cpu_seconds", "work_bytes")
SIZES = {  # case -> sizes of the full run, of the quick one, what is counted
    "plan": ((10**4, 10**5, 10**6), (10**2, 10**3), "items"),
    "load plan": ((10**4, 10**5, 10**6), (10**2, 10**3), "items"),
    "resume scan": ((10**2, 10**3, 10**4), (2, 20), "shards of 10"),
    "merge": ((7 * 10**4, 7 * 10**5, 7 * 10**6), (7 * 10**2, 7 * 10**3), "boxes"),
    "export coco": ((7 * 10**4, 7 * 10**5, 7 * 10**6), (7 * 10**2, 7 * 10**3), "boxes"),
    "export webdataset": ((7 * 10**4, 7 * 10**5, 7 * 10**6), (7 * 10**2, 7 * 10**3), "boxes"),
    "evaluate, hotcoco": ((50, 500, 5000), (5, 20), "images x 100 detections"),
    "evaluate, pycocotools": ((50, 500, 5000), (5, 20), "images x 100 detections"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    parser.add_argument("--record", action="store_true", help=f"write {RESULTS.relative_to(ROOT)}")
    parser.add_argument("--only", metavar="WORD", default="", help="cases whose name holds it")
    parser.add_argument("--scratch", type=Path, help="keep the synthetic runs (about 10 GB) here, and take them up")
    parser.add_argument("--child", nargs=3, metavar=("STEP", "SIZE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        step, size, folder = options.child
        print(json.dumps(STEPS[step](int(size), Path(folder))))
        return
    wanted = {case: sizes for case, sizes in SIZES.items() if options.only in case}
    cases = {}
    with tempfile.TemporaryDirectory(prefix="data-plane-") as temporary:
        scratch = options.scratch or Path(temporary)
        for case, sizes in wanted.items():
            cases[case] = summary(case, [measure(case, size, scratch) for size in sizes[options.quick]])
            cases = (known_cases() if options.record else {}) | cases
            report = {"machine": machine(), "cases": [cases[name] for name in SIZES if name in cases]}
            if options.record:
                RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table(report))


def known_cases() -> dict[str, dict]:
    """What is recorded already, if it was measured on the like of this machine with the same libraries."""
    if not RESULTS.exists():
        return {}
    recorded = json.loads(RESULTS.read_text(encoding="utf-8"))
    same = recorded["machine"] == machine()
    return {case["case"]: summary(case["case"], case["rows"]) for case in recorded["cases"]} if same else {}


def measure(case: str, size: int, scratch: Path) -> dict:
    """One row: build what the case needs, unless an earlier case did, then measure in a fresh process."""
    print(f"{case} {size:.0e} ...", file=sys.stderr, flush=True)
    folder = scratch / {"load plan": "plan", "export coco": "merge", "export webdataset": "merge"}.get(case, case)
    folder = folder / str(size)
    if not folder.exists():
        folder.mkdir(parents=True)
        in_child(f"build {case}", size, folder)
    run = folder / "run"
    if case.startswith("export") and not (run / "annotations.json").exists():
        in_child("merge", size, folder)
    if case == "load plan" and not (run / "plan.json").exists():
        in_child("plan", size, folder)
    if case in ("plan", "merge"):  # the first plan, the first merge is what is measured
        shutil.rmtree(run if case == "plan" else run / "images", ignore_errors=True)
    row = {"size": size, **in_child(case, size, folder)}
    print(f"  {row}", file=sys.stderr, flush=True)
    return row


def in_child(step: str, size: int, folder: Path) -> dict:
    """Run a step in a process of its own; its last line is its answer."""
    if step not in STEPS:
        return {}
    command = [sys.executable, __file__, "--child", step, str(size), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{step} {size} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def timed(work: Callable[[], object]) -> dict:
    """Seconds and memory of some work; its return value under "answer"."""
    before, start, cpu = peak_bytes(), time.perf_counter(), time.process_time()
    answer = work()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = peak_bytes()
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak, "work_bytes": peak - before, "answer": answer}


def peak_bytes() -> int:
    """The most memory that this process ever held. Not ru_maxrss: a child begins with its parent's."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def build_source(folder: Path, images: int = 100) -> Path:
    """A real dataset to plan from."""
    from PIL import Image

    from engine.data.dataset import write_dataset
    from engine.data.records import Annotation, Category, ImageRecord

    (folder / "images").mkdir(parents=True)
    records = [ImageRecord(n, f"{n}.png", 64, 64) for n in range(1, images + 1)]
    for record in records:
        Image.new("RGB", (64, 64), (record.id % 256, 0, 0)).save(folder / "images" / record.file_name)
    boxes = [Annotation(n, n, 1 + n % CLASSES, (8.0, 8.0, 32.0, 32.0), 1024.0, 0) for n in range(1, images + 1)]
    write_dataset(folder, "train", records, boxes, [Category(c, f"class {c}") for c in range(1, CLASSES + 1)])
    return folder


def prepared(items: int, folder: Path, shard_images: int = SHARD_IMAGES):
    """The plan of a run in `folder`/run from the source in `folder`/data."""
    from engine.generation.plan_file import prepare
    from engine.sections import GenerationSettings, LdmSettings, Settings

    settings = Settings(ldm=LdmSettings(resolution=64), generation=GenerationSettings(shard_size=shard_images))
    identity = {"ldm": {"id": "synthetic", "multiple": 8}, "adapter": {"weights_sha256": "0" * 64}}
    return prepare(folder / "data", folder / "run", items, 0, settings, identity)


def build_shards(items: int, folder: Path, shard_images: int) -> dict:
    """Committed shards of a whole run. Pictures are links to one file a shard (disks limit links to a file)."""
    import os
    import random

    from engine.generation.durable import to_json
    from engine.generation.records import KEPT, count
    from engine.generation.shard_state import RECORDS, VERSION, image_name

    build_source(folder / "data")
    plan = prepared(items, folder, shard_images)
    draw = random.Random(0)
    jpeg = tiny_jpeg()
    pictured = {"size": len(jpeg), "sha256": hashlib.sha256(jpeg).hexdigest()}
    for shard in range(plan.shards):
        home = folder / "run" / "shards" / f"{shard:05d}"
        (home / "images").mkdir(parents=True)
        numbers = list(plan.numbers_of(shard))
        first = home / image_name(numbers[0])
        first.write_bytes(jpeg)
        for number in numbers[1:]:
            os.link(first, home / image_name(number))
        records = [
            {"item": number, "status": KEPT, "width": 64, "height": 64, "boxes": [box(draw) for _ in range(7)]}
            for number in numbers
        ]
        lines = b"".join(to_json(record) + b"\n" for record in records)
        (home / RECORDS).write_bytes(lines)
        files = dict.fromkeys(map(image_name, numbers), pictured)
        files[RECORDS] = {"size": len(lines), "sha256": hashlib.sha256(lines).hexdigest()}
        state = {"version": VERSION, "plan": plan.digest, "shard": shard, "items": numbers}
        state |= {"counts": count(records).as_dict(), "files": files}
        (home / "shard.json").write_bytes(to_json(state) + b"\n")
    return {}


def box(draw) -> dict:
    """A generated box of a record: hundredths of a pixel, one in ten an ignore region."""
    x, y, w, h = (draw.randrange(0, 3200) / 100, draw.randrange(0, 3200) / 100, draw.randrange(100, 3200) / 100, 16.25)
    score = draw.randrange(2000, 10000) / 10000
    return {
        "category_id": draw.randrange(1, CLASSES + 1),
        "bbox": [x, y, w, h],
        "iscrowd": int(score < 0.3),
        "score": score,
    }


def tiny_jpeg() -> bytes:
    """The bytes of a picture of 64 x 64."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (90, 120, 60)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def plan(items: int, folder: Path) -> dict:
    from engine.generation import plan_file  # noqa: F401 - imported before the clock starts

    def work():
        return prepared(items, folder).shards

    return timed(work)


def load(items: int, folder: Path) -> dict:
    from engine.generation.plan_file import load_plan

    return timed(lambda: load_plan(folder / "run").images)


def scan(shards: int, folder: Path) -> dict:
    from engine.generation.run import pending_shards

    return timed(lambda: len(pending_shards(folder / "run")))


def merge(boxes: int, folder: Path) -> dict:
    from engine.generation.merge import merge

    return timed(lambda: merge(folder / "run")["annotations_sha256"])


def export(format: str, folder: Path) -> dict:
    from engine.data.export import ExportOptions, export_dataset

    out = folder / f"exported-{format}"
    found = timed(lambda: export_dataset(folder / "run", out, format, ExportOptions(link=True)).splits["train"].boxes)
    shutil.rmtree(out)
    return found


def evaluate(evaluator: str, images: int) -> dict:
    from dataclasses import asdict

    from engine.evaluation.coco_map import evaluate

    if evaluator == "hotcoco":
        import hotcoco  # noqa: F401 - before the clock starts

    dataset, detections = detection_problem(images)
    found = timed(lambda: asdict(evaluate(dataset, detections, evaluator=evaluator)))
    exact = json.dumps(found["answer"], sort_keys=True)  # floats in their shortest exact form
    found["answer"] = {"detections": len(detections), "map": found["answer"]["map"], "metrics_sha256": sha256(exact)}
    return found


def detection_problem(images: int):
    """7 objects an image of 80 classes, of every size; 35 detections near them and 65 elsewhere."""
    import numpy as np

    from engine.data.dataset import Dataset
    from engine.data.records import Annotation, Category, ImageRecord

    rng = np.random.default_rng(0)
    boxes, detections = [], []

    def drawn(count):
        return np.concatenate([rng.uniform(0, 400, (count, 2)), np.exp(rng.uniform(2, 5.5, (count, 2)))], axis=1)

    def found(image, at, classes):
        for corner, category in zip(at.tolist(), classes.tolist(), strict=True):
            detections.append(
                {"image_id": image, "category_id": category, "bbox": corner, "score": float(rng.random())}
            )

    for image in range(1, images + 1):
        objects, classes = drawn(7), rng.integers(1, CLASSES + 1, 7)
        for at, category in zip(objects.tolist(), classes.tolist(), strict=True):
            crowd = int(rng.random() < 0.03)
            boxes.append(Annotation(len(boxes) + 1, image, category, tuple(at), at[2] * at[3], crowd))
        near = np.repeat(objects, 5, axis=0)
        found(image, near * np.exp(rng.normal(0, 0.08, near.shape)), np.repeat(classes, 5))
        found(image, drawn(65), rng.integers(1, CLASSES + 1, 65))
    records = tuple(ImageRecord(n, f"{n}.jpg", 700, 700) for n in range(1, images + 1))
    categories = tuple(Category(c, f"class {c}") for c in range(1, CLASSES + 1))
    return Dataset(Path("nowhere"), "test", records, categories, tuple(boxes)), detections


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


STEPS = {
    "build plan": lambda size, folder: {"built": str(build_source(folder / "data"))},
    "plan": plan,
    "load plan": load,
    "build resume scan": lambda size, folder: build_shards(10 * size, folder, 10),
    "resume scan": scan,
    "build merge": lambda size, folder: build_shards(size // BOXES_PER_IMAGE, folder, SHARD_IMAGES),
    "merge": merge,
    "export coco": lambda size, folder: export("coco", folder),
    "export webdataset": lambda size, folder: export("webdataset", folder),
    "evaluate, hotcoco": lambda size, folder: evaluate("hotcoco", size),
    "evaluate, pycocotools": lambda size, folder: evaluate("pycocotools", size),
}
STEPS["build load plan"] = STEPS["build plan"]
STEPS["build export coco"] = STEPS["build export webdataset"] = STEPS["build merge"]


def summary(name: str, rows: list[dict]) -> dict:
    """A case with the growth exponents over its sizes."""
    growth = {f"exponent_{key}": exponent([(row["size"], row[key]) for row in rows]) for key in GROWING}
    return {"case": name, "counted": SIZES[name][2], "rows": rows, **growth}


def exponent(points: list[tuple[float, float]]) -> float | None:
    """Least-squares slope in log-log; None where there are not two sizes, or nothing to measure."""
    import numpy as np

    points = [(size, value) for size, value in points if value > 0]
    if len(points) < 2:
        return None
    return float(np.polyfit(*np.log(np.array(points, dtype=float)).T, 1)[0])


def machine() -> dict:
    """What it ran on."""
    import os

    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    libraries = {name: version(name) for name in ("pycocotools", "hotcoco", "numpy")}
    cores = len(os.sched_getaffinity(0))
    return {"cpu": cpu[1] if cpu else "?", "cores": cores, "python": platform.python_version(), **libraries}


def table(report: dict) -> str:
    """Markdown."""
    lines = [f"Machine: {report['machine']}", ""]
    lines += ["| case | size | seconds | CPU s | peak MB | for the work MB | exponent of time | of CPU | of memory |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for case in report["cases"]:
        for place, row in enumerate(case["rows"], start=1):
            last = place == len(case["rows"])
            powers = [case[f"exponent_{key}"] if last else None for key in GROWING]
            cells = [case["case"], f"{row['size']:,} {case['counted']}", f"{row['seconds']:.2f}"]
            cells += [f"{row['cpu_seconds']:.2f}", f"{row['peak_bytes'] / 1e6:.0f}", f"{row['work_bytes'] / 1e6:.0f}"]
            cells += ["" if power is None else f"{power:.2f}" for power in powers]
            lines.append("| " + " | ".join(cells) + " |")
    pairs = {case["case"]: case["rows"] for case in report["cases"]}
    for fast, slow in zip(pairs.get("evaluate, hotcoco", []), pairs.get("evaluate, pycocotools", []), strict=False):
        same = "identical" if fast["answer"] == slow["answer"] else "DIFFERENT"
        ratio = slow["cpu_seconds"] / fast["cpu_seconds"]
        lines += ["", f"{fast['answer']['detections']:,} detections: {same} metrics, CPU time {ratio:.1f} : 1"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
