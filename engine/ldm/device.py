"""The device that a setting names."""

from __future__ import annotations

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
