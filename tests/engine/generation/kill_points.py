"""Run by a test: kill a run at each of its write points in turn, finish it, write what was found to found.json.

    python kill_points.py FOLDER fresh|repair ends|every

Each run is a forked child of this single-threaded process, so that hundreds of points take seconds. "repair" starts
from a finished run of which one image was deleted and one shard.json emptied. Of the points that do the same to files
of one kind, "ends" takes the first and the last one.
"""

from __future__ import annotations

import builtins
import io
import json
import logging
import os
import re
import shutil
import signal
import sys
from pathlib import Path

from conftest import Bench, result, write_source
from tqdm import tqdm

from engine.generation.run import look, verify

_open = open
NUMBER = re.compile(r"[0-9a-f]{8}|\d+")
PATCHED = ("fsync", "rename", "replace", "link", "unlink", "mkdir", "rmdir")


class Points:
    """Counts write points; ends the process without warning before the one that is `deadly`."""

    def __init__(self, deadly: int | None):
        self.deadly, self.passed = deadly, []

    def pass_one(self, what: str, path) -> None:
        if len(self.passed) == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        name = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else str(path)
        self.passed.append(f"{what} {NUMBER.sub('#', name)}")

    def patch(self) -> None:
        os.fsync = lambda handle: None  # a killed process leaves what it wrote in the system's hands: saves the wait
        for name in PATCHED:
            setattr(os, name, self._guarded(getattr(os, name)))
        builtins.open = io.open = self._open  # pathlib takes the latter

    def _guarded(self, function):
        def guarded(*args, **kwargs):
            self.pass_one(function.__name__, args[0])
            return function(*args, **kwargs)

        return guarded

    def _open(self, path, mode="r", *args, **kwargs):
        if "w" not in mode:
            return _open(path, mode, *args, **kwargs)
        self.pass_one("open", path)
        return _TornFile(_open(path, mode, *args, **kwargs), self)


class _TornFile:
    """A file that may be cut off in the middle of each write."""

    def __init__(self, file, points: Points):
        self.file, self.points = file, points

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, content: bytes) -> None:
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        self.points.pass_one("tear", self.file.name)
        self.file.write(content[len(content) // 2 :])


def run(bench: Bench, name: str, deadly: int | None) -> tuple[int, list[str]]:
    """Generate in a child process; (signal that ended it or 0, write points passed where it came to its end)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        points = Points(deadly)
        write, leave = os.write, os._exit
        points.patch()
        try:
            bench.generate(name, images=4, shard_size=2)
            write(writer, json.dumps(points.passed).encode())
            leave(0)
        finally:
            leave(1)
    os.close(writer)
    with _open(reader, "rb") as pipe:
        passed = pipe.read()
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"the run to be killed at {deadly} failed by itself")
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, json.loads(passed or b"[]")


def ends(points: list[str]) -> list[int]:
    """Places of the first and the last of each kind of points."""
    first = {kind: place for place, kind in reversed(list(enumerate(points)))}
    last = {kind: place for place, kind in enumerate(points)}
    return sorted({*first.values(), *last.values()})


def committed(out: Path) -> dict[str, tuple[int, int]]:
    """inode and time of each shard.json that is in place."""
    files = sorted(out.glob("shards/[0-9]*/shard.json"))
    return {file.parent.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def problems(bench: Bench, out: Path, expected: dict, deadly: int, damaged: set[str]) -> list[str]:
    """What is wrong with a run that was killed, before and after it is finished."""
    found = []
    if (out / "annotations.json").exists() and not damaged:
        whole = result(out)["annotations.json"] if (out / "manifest.json").exists() else None
        if whole not in (None, expected["annotations.json"]):
            found.append("annotations.json was not whole")
    if (out / "plan.json").exists():
        bad = {f"{number:05d}" for number in look(out, verify=True).bad} - damaged
        found += [f"shard {name} had its name before it was whole" for name in bad]
    before = {name: mark for name, mark in committed(out).items() if name not in damaged}
    run(bench, out.name, None)
    after = committed(out)
    found += [f"shard {name} was done twice" for name in before if after[name] != before[name]]
    if result(out) != expected:
        found.append("another result")
    found += verify(out)
    found += [f"left behind: {path}" for path in out.rglob(".*")]
    return [f"killed at {deadly}: {problem}" for problem in found]


def main(folder: Path, scenario: str, which: str) -> None:
    logging.disable()
    (folder / "adapter").mkdir()
    bench = Bench(folder, write_source(folder / "data"), folder / "adapter")
    tqdm.monitor_interval = 0  # a thread; nothing may be forked beside one
    bench.generate("warm", images=4, shard_size=2)  # here, so that no child has to import anything any more
    _, points = run(bench, "unbroken", None)
    expected = result(folder / "unbroken")
    damaged = set()
    if scenario == "repair":
        damaged = {"00000", "00001"}
        damage(folder / "unbroken")
        shutil.copytree(folder / "unbroken", folder / "measure")
        _, points = run(bench, "measure", None)
    found, killed, interrupted = [], 0, 0
    chosen = ends(points) if which == "ends" else range(len(points))
    for deadly in chosen:
        out = folder / f"{deadly}"
        if scenario == "repair":
            shutil.copytree(folder / "unbroken", out)
        ended_by, _ = run(bench, out.name, deadly)
        killed += ended_by == signal.SIGKILL
        interrupted += not (out / "plan.json").exists() or bool(verify(out))
        found += problems(bench, out, expected, deadly, damaged)
        shutil.rmtree(out)
    summary = {"points": len(chosen), "killed": killed, "interrupted": interrupted, "problems": found}
    (folder / "found.json").write_text(json.dumps(summary))


def damage(out: Path) -> None:
    next((out / "shards" / "00000" / "images").iterdir()).unlink()
    (out / "shards" / "00001" / "shard.json").write_bytes(b"")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
