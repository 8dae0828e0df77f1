"""The processes of a training: one, or one a GPU as `accelerate launch` and `torchrun` start them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedDataParallelKwargs


def take_own_gpu() -> None:
    """Make "cuda" mean this process's own GPU. To be called before anything is put on a device."""
    if torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


@contextmanager
def joined(device: torch.device, bfloat16: bool) -> Iterator[Accelerator]:
    """The accelerator of one training. accelerate keeps its settings for the whole program; they are forgotten before
    and after, so that one program can run trainings with different ones. The process group stays."""
    _forget()
    try:
        yield Accelerator(
            mixed_precision="bf16" if bfloat16 else "no",
            cpu=device.type == "cpu",
            # Heads leave weights out where a batch has nothing for them: a mask branch without masks.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    finally:
        _forget()


def _forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def is_main_process() -> bool:
    """Whether this process is the one that writes."""
    return int(os.environ.get("RANK", "0")) == 0


def wait_for_all() -> None:
    """Return when every process has come here."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
