"""What the orchestrator costs: shards through Prefect's thread tasks, and through slots on a Ray cluster, against the
same worker process driven by the engine alone. Interleaved rounds; the work of a shard is next to nothing.

    uv run python bench/orchestration.py --rounds 7 --shards 20
    uv run python bench/orchestration.py --task-runner

The second command shows why shards are not tasks of prefect_ray's RayTaskRunner: which GPUs a process with loaded
models meets, what becomes of the task runs of dead processes, and of a node that does not reach Prefect's server.
"""

from __future__ import annotations

import argparse
import collections
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flat_drawer import FlatDrawer

SHARD_S = 60.0
GOAL = 2.0  # percent
HOME = Path(tempfile.mkdtemp(prefix="bench-", dir="/tmp"))  # sockets of Ray: short
os.environ |= {
    "PREFECT_HOME": str(HOME / "prefect"),
    "PREFECT_API_URL": "",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "a-token-of-the-bench-0123456789",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # stay on 127.0.0.1
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])]),
}


def make_source():
    """A dataset of one picture, and where its drawer comes from: one image to a shard."""
    from PIL import Image

    from engine.config import load_settings
    from engine.data.dataset import write_dataset
    from engine.data.records import Annotation, Category, ImageRecord
    from engine.generation.source import DrawerSource

    (HOME / "data" / "images").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(HOME / "data" / "images" / "1.png")
    box = Annotation(1, 1, 1, (8.0, 8.0, 16.0, 16.0), 256.0, 0, {})
    write_dataset(HOME / "data", "train", [ImageRecord(1, "1.png", 64, 64, {})], [box], [Category(1, "thing")])
    words = ("ldm.resolution=64", "ldm.device=cpu", "generation.shard_size=1", "generation.keep_negatives=true")
    return DrawerSource(HOME / "data", "none", HOME, load_settings(None, words), "flat_drawer:load")


def planned(source, name: str, shards: int) -> Path:
    from engine.generation.plan_file import prepare

    out = HOME / f"out-{name}"
    prepare(source.data, out, shards, 0, source.settings, FlatDrawer.identity)
    return out


@contextmanager
def cluster(cpus: int, gpus: int = 0) -> Iterator[str]:
    """A Ray node on 127.0.0.1; gives its address."""
    from ray.cluster_utils import Cluster

    made = Cluster()
    size = {"object_store_memory": 80_000_000, "include_dashboard": False, "node_ip_address": "127.0.0.1"}
    made.add_node(num_cpus=cpus, num_gpus=gpus, temp_dir=str(HOME / "r"), **size)
    try:
        yield made.address
    finally:
        made.shutdown()


@contextmanager
def ways(source, shards: int) -> Iterator[dict[str, Callable[[], None]]]:
    """Each way to have the shards drawn, ready to go: models are loaded, tasks need no import any more."""
    from prefect import flow

    from engine.generation.crew import drive
    from engine.generation.worker_process import WorkerProcess
    from tasks.generate import Progress, draw_shards
    from tasks.ray_slots import open_ray_slots
    from tasks.slots import open_slots

    numbers = tuple(range(shards))
    with ExitStack() as stack:
        outs = {name: planned(source, name, shards) for name in ("engine", "prefect", "ray")}
        worker = stack.enter_context(WorkerProcess(source, outs["engine"]))
        address = stack.enter_context(cluster(cpus=1))
        opened = {
            "prefect": stack.enter_context(open_slots(source, outs["prefect"], 1)),
            "ray": stack.enter_context(open_ray_slots(address, source, outs["ray"], 1)),
        }
        seconds: dict[str, float] = {}

        @flow
        def orchestrated(name: str) -> None:
            began = time.perf_counter()
            draw_shards(opened[name], Progress("", shards, numbers), 1)
            seconds[name] = time.perf_counter() - began

        def engine() -> float:
            shutil.rmtree(outs["engine"] / "shards", ignore_errors=True)
            began = time.perf_counter()
            drive([worker], numbers, lambda items: None)
            return time.perf_counter() - began

        def through(name: str) -> float:
            shutil.rmtree(outs[name] / "shards", ignore_errors=True)
            orchestrated(name)
            return seconds[name]

        yield {"engine": engine, "prefect": lambda: through("prefect"), "ray": lambda: through("ray")}


def measure(rounds: int, shards: int) -> None:
    """Print the table."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=300), ways(make_source(), shards) as known:
        for run in known.values():
            run()  # warm
        times = [{name: run() for name, run in known.items()} for _ in range(rounds)]
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{rounds} interleaved rounds of {shards} shards; medians, and the range over the rounds\n")
    print("| way | ms a shard | more than the engine alone, ms | share of a shard of one minute |")
    print("|---|---|---|---|")
    for name, words in {
        "engine": "engine alone (one worker process)",
        "prefect": "Prefect thread tasks, worker process",
        "ray": "Prefect thread tasks, slot on a Ray node",
    }.items():
        each = [1000 * row[name] / shards for row in times]
        more = [1000 * (row[name] - row["engine"]) / shards for row in times]
        share = 100 * statistics.median(more) / 1000 / SHARD_S
        verdict = "" if name == "engine" else f"{share:.3f} % (goal: at most {GOAL:g} %)"
        extra = "" if name == "engine" else f"{statistics.median(more):.1f} ({min(more):.1f} to {max(more):.1f})"
        print(f"| {words} | {statistics.median(each):.1f} | {extra} | {verdict} |")


def show_task_runner() -> None:
    """Print what happens to shards as tasks of RayTaskRunner, on four GPUs that only Ray believes in."""
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.testing.utilities import prefect_test_harness
    from prefect_ray import RayTaskRunner
    from prefect_ray.context import remote_options

    @task(cache_policy=NO_CACHE, persist_result=False)
    def shard(number: int, seconds: float) -> tuple[int, str]:
        if number % 8 == 7:
            os._exit(3)  # a worker that dies
        time.sleep(seconds)
        return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES", "")

    def outcome(future) -> object:
        try:
            return future.result(timeout=60)
        except Exception as error:
            return error

    @flow
    def tasks_on_ray(address: str) -> None:
        with RayTaskRunner(init_kwargs={"address": address, "log_to_driver": False}) as runner:
            with remote_options(num_gpus=1, max_calls=0, max_retries=0):
                ended = [outcome(f) for f in [runner.submit(shard, {"number": n, "seconds": 1.0}) for n in range(40)]]
            met = collections.defaultdict(set)
            for pid, gpu in [value for value in ended if isinstance(value, tuple)]:
                met[pid].add(gpu)
            moved = sum(len(gpus) > 1 for gpus in met.values())
            print(
                f"40 tasks on 4 GPUs, 5 of which kill their process: {len(met)} processes held models, {moved} of them"
            )
            print(f"were given another GPU than the one they had begun on: {sorted(map(sorted, met.values()))}")
            time.sleep(3)
            with get_client(sync_client=True) as client:
                states = collections.Counter(run.state_type.value for run in client.read_task_runs(limit=100))
            print(f"states of the 40 task runs on Prefect's server: {dict(states)}")
            nowhere = {PREFECT_API_URL: "http://127.0.0.1:9/api"}
            with temporary_settings(nowhere), remote_options(num_gpus=1, max_calls=0, max_retries=0):
                future = runner.submit(shard, {"number": 0, "seconds": 0.0})
            said = str(outcome(future)).strip().splitlines()
            print(f"a task on a node that does not reach Prefect's server ends with: {said[-1] if said else ''}")

    with prefect_test_harness(server_startup_timeout=300), cluster(cpus=4, gpus=4) as address:
        tasks_on_ray(address)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--task-runner", action="store_true")
    arguments = parser.parse_args()
    try:
        show_task_runner() if arguments.task_runner else measure(arguments.rounds, arguments.shards)
    finally:
        shutil.rmtree(HOME, ignore_errors=True)
