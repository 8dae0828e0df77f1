"""The worker process: `python -m engine.generation.worker`. One line of json in, lines of json out, until stdin ends.

In:  {"source": ..., "out": ..., "parent": pid}, then {"shard": n, "retry_failed": bool} again and again.
Out: {"ready": identity}; for each shard {"progress": items}..., then {"done": counts} or {"error": {...}}. While it
is at work, also {"alive": true} every few seconds: a process that is silent is frozen.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from engine.generation.plan_file import load_plan
from engine.generation.shard import run_shard
from engine.generation.source import DrawerSource

PR_SET_PDEATHSIG = 1  # linux/prctl.h
HEARTBEAT_S = 2.0


def main() -> None:
    """Serve the process that started this one."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    signal.signal(signal.SIGTERM, _stop)
    # What libraries print must not get between the lines of the protocol.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="ascii")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    turn = threading.Lock()

    def answer(**message) -> None:
        with turn:
            answers.write(json.dumps(message) + "\n")
            answers.flush()

    start = json.loads(sys.stdin.readline())
    if os.getppid() != start["parent"]:
        return  # it died before the kernel knew that we want to die with it
    out, plan = start["out"], None
    try:
        with heartbeat(answer):
            drawer = DrawerSource.from_json(start["source"]).load()
    except Exception as error:
        answer(error=describe(error))
        return
    answer(ready=drawer.identity)
    for line in sys.stdin:
        order = json.loads(line)
        try:
            with heartbeat(answer):
                plan = plan or load_plan(out)
                counts = run_shard(
                    out,
                    order["shard"],
                    drawer,
                    plan=plan,
                    retry_failed=order["retry_failed"],
                    progress=lambda items: answer(progress=items),
                )
        except BrokenPipeError:
            raise
        except Exception as error:
            answer(error=describe(error))
        else:
            answer(done=counts.as_dict())


def _stop(number, frame):
    """End after the shard in hand was cleaned away."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(128 + signal.SIGTERM)


@contextmanager
def heartbeat(answer: Callable) -> Iterator[None]:
    """Say that this process is alive, again and again, inside the `with` block."""
    over = threading.Event()

    def beat() -> None:
        try:
            while not over.wait(HEARTBEAT_S):
                answer(alive=True)
        except OSError:
            pass  # nobody listens any more; the main thread will see it too

    thread = threading.Thread(target=beat, daemon=True, name="heartbeat")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def describe(error: Exception) -> dict:
    """An exception as json: type, text, and errno where it has one."""
    return {"type": type(error).__name__, "text": str(error)[:5000], "errno": getattr(error, "errno", None)}


def die_with_parent() -> None:
    """Ask the kernel (Linux) to end this process when the thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
