"""The device that a setting names, and how it is asked for the same bytes every time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from engine.errors import ModelError


def choose_device(name: str) -> torch.device:
    """The torch device of a `ldm.device` setting; "auto" takes CUDA, then MPS, then the CPU.

    Raises:
        ModelError: torch does not see the device that is asked for.
    """
    seen = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if seen[kind])
    if not seen[name]:
        what = {"cuda": "GPU", "mps": "Apple GPU"}[name]
        raise ModelError(f"ldm.device is {name}, but torch sees no {what} here. Set ldm.device to cpu or auto.")
    return torch.device(name)


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """On a CPU, sums split over threads differ in their last bits, and so do pixels: one thread gives the same bytes
    for any number of workers. More cores are used by more workers."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
