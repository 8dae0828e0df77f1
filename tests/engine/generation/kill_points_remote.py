"""Run by a test: kill a run at each of its requests to an S3 server in turn, before and after it, and finish it.

    python kill_points_remote.py FOLDER

Writes what was found to found.json. Each run is a forked child; this process never opens a store itself, so that
no thread of a library is lost in the fork.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
from pathlib import Path

from conftest import Bench, result, write_source
from s3_server import BUCKET
from tqdm import tqdm

from engine.generation import lease
from engine.generation.object_store import ObjectStore
from engine.generation.run import verify

GUARDED = ("put", "create", "remove")
MAKE = {"images": 4, "shard_size": 2}


class Points:
    """Counts requests that change the store; ends the process at the one that is `deadly`."""

    def __init__(self, deadly: int | None):
        self.deadly, self.count = deadly, 0

    def pass_one(self) -> None:
        if self.count == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1

    def patch(self) -> None:
        os.fsync = lambda handle: None
        ObjectStore.at_once = 1  # the same order of requests in every run
        for name in GUARDED:
            setattr(ObjectStore, name, self._guarded(getattr(ObjectStore, name)))

    def _guarded(self, function):
        def guarded(*args):
            self.pass_one()
            answer = function(*args)
            self.pass_one()
            return answer

        return guarded


def in_child(work) -> tuple[int, bytes]:
    """(signal that ended the child or 0, what it answered)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        leave = os._exit
        try:
            answer = json.dumps(work()).encode()
            os.write(writer, answer)
            leave(0)
        finally:
            leave(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a child failed by itself")
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, answer


def run(bench: Bench, name: str, deadly: int | None) -> tuple[int, int]:
    def work() -> int:
        points = Points(deadly)
        points.patch()
        bench.generate(name, store=url(name), **MAKE)
        return points.count

    ended_by, answer = in_child(work)
    return ended_by, int(answer or b"0")


def url(name: str) -> str:
    return f"s3://{BUCKET}/kill/{name}"


def state(bench: Bench, name: str) -> dict:
    """What is in the store, and what verify says of it, seen by a process of its own."""

    def work() -> dict:
        store = ObjectStore(url(name))
        keys = list(store.sizes("shards"))
        commits = {key: store.get(f"shards/{key}").decode() for key in keys if key.endswith(".json") and "/" not in key}
        attempts = sorted({key.split("/")[0] for key in keys if "/" in key})
        leases = list(store.sizes("leases"))
        problems = verify(bench.root / name, url(name)) if store.names("") else ["nothing"]
        return {"commits": commits, "attempts": attempts, "leases": leases, "problems": problems}

    return json.loads(in_child(work)[1])


def problems(bench: Bench, name: str, expected: dict, deadly: int, before: dict) -> list[str]:
    found = []
    run(bench, name, None)
    after = state(bench, name)
    found += [f"{key} was done twice" for key in before["commits"] if after["commits"][key] != before["commits"][key]]
    if result(bench.root / name) != expected:
        found.append("another result")
    found += after["problems"] + [f"lease left: {key}" for key in after["leases"]]
    if len(after["attempts"]) != len(after["commits"]):
        found.append(f"attempts left behind: {after['attempts']}")
    return [f"killed at {deadly}: {problem}" for problem in found]


def main(folder: Path) -> None:
    logging.disable()
    (folder / "adapter").mkdir()
    bench = Bench(folder, write_source(folder / "data"), folder / "adapter")
    tqdm.monitor_interval = 0
    lease.BEAT_S, lease.STALE_S, lease.LOOK_S = 60.0, 0.3, 0.02  # no beat: it would be a request at a random moment
    bench.generate("local", **MAKE)
    expected = result(folder / "local")
    _, points = run(bench, "unbroken", None)
    found, killed, interrupted = [], 0, 0
    if result(folder / "unbroken") != expected:
        found.append("a store gives another result than a folder")
    for deadly in range(points):
        ended_by, _ = run(bench, str(deadly), deadly)
        killed += ended_by == signal.SIGKILL
        before = state(bench, str(deadly))
        interrupted += bool(before["problems"])
        found += problems(bench, str(deadly), expected, deadly, before)
        shutil.rmtree(folder / str(deadly), ignore_errors=True)
    summary = {"points": points, "killed": killed, "interrupted": interrupted, "problems": found}
    (folder / "found.json").write_text(json.dumps(summary))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
