"""Ownership where the kernel holds no lock for us: an object that its owner keeps changing.

A lease only saves double work; a commit is right without it. Nobody compares the clocks of two machines: who waits
watches on its own clock whether the owner's counter still moves.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from engine.generation.cleaning import to_the_end
from engine.generation.durable import to_json
from engine.generation.lock import Busy
from engine.generation.objects import Objects

log = logging.getLogger(__name__)
BEAT_S = 5.0  # the owner counts on
STALE_S = 60.0  # an owner that has not counted on for so long is taken for dead
LOOK_S = 0.5


@contextmanager
def lease(objects: Objects, key: str, what: str, wait: bool = False) -> Iterator[None]:
    """Own `key` inside the `with` block, as long as this process counts on.

    Finding out that an owner lives takes up to BEAT_S, that it is dead up to STALE_S; on its own machine no time.

    Args:
        key: the lease's object; made here, removed at the end.
        what: what it stands for, in words, for messages.
        wait: wait for another owner to end, else raise.

    Raises:
        Busy: a live owner has it.
    """
    me = {"owner": secrets.token_hex(8)} | _identity(os.getpid())
    ended = threading.Event()
    keeper = threading.Thread(target=_keep, args=(objects, key, me, ended), daemon=True, name=f"lease {key}")
    try:  # from here on: a signal may come when the object is made and nobody knows it yet
        _acquire(objects, key, what, me, wait)
        keeper.start()
        yield
    finally:
        to_the_end(lambda: _end(keeper, ended, objects, key, me))


def dead_among(objects: Objects, keys: list[str]) -> set[str]:
    """Those leases whose owner has stopped; all are watched at once, until STALE_S have passed at the most."""
    seen = {key: content for key in keys if (content := _read(objects, key)) is not None}
    dead = {key for key, content in seen.items() if _ended_here(content)}
    still = set(seen) - dead
    end = time.monotonic() + STALE_S
    while still and time.monotonic() < end:
        time.sleep(min(LOOK_S, STALE_S))
        still = {key for key in still if _read(objects, key) == seen[key]}
    return dead | still


def _acquire(objects: Objects, key: str, what: str, me: dict, wait: bool) -> None:
    told = False
    while not objects.create(key, to_json(me | {"beat": 0})):
        seen = _read(objects, key)
        if seen is None:
            continue  # it was given back just now
        if seen.get("owner") == me["owner"]:
            return  # the first answer was lost, and the request was sent again
        if key in dead_among(objects, [key]):
            log.warning("%s: its owner (%s) stopped without finishing; taken over.", what, _name(seen))
            if _read(objects, key) == seen:
                objects.remove([key])
            continue
        if _read(objects, key) is None:
            continue
        if not wait:
            raise Busy(
                f"{what} is in the hands of another live process ({_name(seen)}; lease {key}). "
                "Wait for it to end, or stop it, then give the same command again."
            )
        if not told:
            log.info("%s: waiting for %s.", what, _name(seen))
            told = True
        time.sleep(LOOK_S)


def _keep(objects: Objects, key: str, me: dict, ended: threading.Event) -> None:
    beat = 0
    while not ended.wait(BEAT_S):
        beat += 1
        try:
            now = _read(objects, key)
            if now is not None and now.get("owner") != me["owner"]:
                log.warning("The lease %s was taken over by %s; the work may be done twice.", key, _name(now))
                return
            objects.put(key, to_json(me | {"beat": beat}))
        except Exception as error:  # the next beat may get through
            log.warning("The lease %s could not be renewed: %s", key, error)


def _end(keeper: threading.Thread, ended: threading.Event, objects: Objects, key: str, me: dict) -> None:
    ended.set()
    if keeper.is_alive():
        keeper.join(BEAT_S)  # its last word may be stuck on the way
    _release(objects, key, me)


def _release(objects: Objects, key: str, me: dict) -> None:
    try:
        now = _read(objects, key)
        if now is not None and now.get("owner") == me["owner"]:
            objects.remove([key])
    except Exception as error:  # it will be taken for dead
        log.warning("The lease %s could not be given back: %s", key, error)


def _read(objects: Objects, key: str) -> dict | None:
    """A lease's content; {} where it is not readable, None where there is none."""
    try:
        content = json.loads(objects.get(key))
        return content if isinstance(content, dict) else {}
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return {}


def _name(seen: dict) -> str:
    return f"process {seen.get('pid', 'unknown')} on {seen.get('host', 'unknown')}"


def _ended_here(seen: dict) -> bool:
    """Whether the owner was a process of this machine that has ended; its id may be another process's by now."""
    pid = seen.get("pid")
    return type(pid) is int and seen.get("space") == _pid_space() and seen.get("start") != _start_of(pid)


def _identity(pid: int) -> dict:
    return {"host": socket.gethostname(), "pid": pid, "start": _start_of(pid), "space": _pid_space()}


def _start_of(pid: int) -> int:
    """When a process started, in ticks since boot; 0 where there is none, or a dead one."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
    except OSError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])


def _pid_space() -> str:
    """Where process ids of this process mean the same: this boot of this machine, this container."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return secrets.token_hex(8)
