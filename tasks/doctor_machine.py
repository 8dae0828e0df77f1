"""The machine: cores, memory, disk, GPU. What it allows counts, not what it has: containers are given a part."""

from __future__ import annotations

import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import psutil

from engine.cores import usable_cores
from engine.generation.disk import free_bytes, readable_bytes
from tasks.doctor_check import OK, PROBLEM, WARNING, Check

GB = 10**9
LITTLE_MEMORY, TOO_LITTLE_MEMORY = 4 * GB, 1 * GB
LITTLE_DISK, TOO_LITTLE_DISK = 20 * GB, 2 * GB
LITTLE_GPU_MEMORY = 6 * GB  # a Stable Diffusion 2 in bfloat16 with a batch of images
BUSY = 1.5  # load of each core
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Allowance:
    """What a container may use; None for no limit. cpus: cores' worth of time; memory in bytes."""

    cpus: float | None = None
    memory: int | None = None
    memory_used: int = 0


@dataclass(frozen=True)
class Gpu:
    """A GPU as torch sees it, memory in bytes; fault: why nothing can be computed on it."""

    name: str
    total: int
    free: int
    fault: str | None = None


def check_cores(allowance: Allowance, cores: int, usable: int, load: float | None) -> Check:
    """The cores that this process may use, and whether others use them."""
    share = min(usable, allowance.cpus or usable)
    of_all = "" if share == cores else f" of {cores} (the rest is not for this process)"
    said = f"{share:g}{of_all}" + ("" if load is None else f", load {load:.1f}")
    if load is not None and load > BUSY * cores:
        return Check(
            "cores", WARNING, f"{said}: others work here too", "Times will be longer; OMP_NUM_THREADS=1 helps all."
        )
    if share < usable and not os.environ.get("OMP_NUM_THREADS"):
        cure = f"Set OMP_NUM_THREADS={max(1, int(share))}: threads beyond the share only wait for each other."
        return Check("cores", WARNING, said, cure)
    return Check("cores", OK, said)


def check_memory(allowance: Allowance, total: int, available: int) -> Check:
    """Memory that is free for this process."""
    if allowance.memory is not None and allowance.memory < total:
        total, available = allowance.memory, min(available, max(0, allowance.memory - allowance.memory_used))
    said = f"{readable_bytes(available)} free of {readable_bytes(total)}"
    if available < TOO_LITTLE_MEMORY:
        return Check("memory", PROBLEM, said, "End other programs: even the embedded model needs more than 1 GB.")
    if available < LITTLE_MEMORY:
        return Check(
            "memory", WARNING, said, "Enough for the embedded model; a large diffusion model needs 8 GB and more."
        )
    return Check("memory", OK, said)


def check_disk(folder: Path, free: int | None = None) -> Check:
    """Room on the disk of the workspace."""
    free = free_bytes(folder) if free is None else free
    said = f"{readable_bytes(free)} free at {folder}"
    if free < TOO_LITTLE_DISK:
        return Check(
            "disk", PROBLEM, said, "Make room: `de status` shows what takes it, `dvc gc -w` thins DVC's cache."
        )
    if free < LITTLE_DISK:
        return Check(
            "disk", WARNING, said, "A large diffusion model takes 5 GB and more; DVC keeps a second copy of outputs."
        )
    return Check("disk", OK, said)


def check_gpus(gpus: list[Gpu], driver: bool, other: str | None = None) -> list[Check]:
    """The GPUs that torch can use.

    Args:
        driver: whether this machine has NVIDIA's driver.
        other: another accelerator that torch can use.
    """
    if gpus:
        return [_gpu(number, gpu) for number, gpu in enumerate(gpus)]
    if driver:
        cure = "Look at nvidia-smi, CUDA_VISIBLE_DEVICES, and whether the driver is new enough for this torch."
        return [Check("gpu", WARNING, "NVIDIA's driver is here, but torch can use no GPU", cure)]
    if other:
        return [Check("gpu", OK, other)]
    cure = "The embedded model works without; with a large diffusion model an image takes minutes."
    return [Check("gpu", WARNING, "none", cure)]


def _gpu(number: int, gpu: Gpu) -> Check:
    name, said = f"gpu {number}", f"{gpu.name}, {readable_bytes(gpu.free)} free of {readable_bytes(gpu.total)}"
    if gpu.fault:
        return Check(
            name, PROBLEM, f"{said}: torch cannot compute on it ({gpu.fault})", "See nvidia-smi; update the driver."
        )
    if gpu.free < LITTLE_GPU_MEMORY:
        cure = "Too little for a large diffusion model: end what holds it (nvidia-smi names it), or ldm.dtype=bfloat16."
        return Check(name, WARNING, said, cure)
    return Check(name, OK, said)


def machine_checks(folder: Path) -> list[Check]:
    """Cores, memory and disk as they are now."""
    allowance, memory = read_allowance(), psutil.virtual_memory()
    cores = os.cpu_count() or 1
    usable = usable_cores()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return [
        check_cores(allowance, cores, usable, load),
        check_memory(allowance, memory.total, memory.available),
        check_disk(folder),
    ]


def gpu_checks(folder: Path) -> list[Check]:
    """The GPUs as torch sees them now; computes one number on each."""
    try:
        import torch
    except Exception as error:  # a broken installation fails in many ways
        reason = str(error).splitlines()[0][:200] if str(error) else ""
        return [Check("gpu", PROBLEM, f"torch does not import ({type(error).__name__}: {reason})", "`uv sync`.")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of an old driver; the check says it
        gpus = [_look_at(torch, i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    return check_gpus(gpus, driver, "Apple's, through mps" if torch.backends.mps.is_available() else None)


def _look_at(torch, number: int) -> Gpu:
    properties = torch.cuda.get_device_properties(number)
    try:
        torch.ones(1, device=f"cuda:{number}").sum().item()
        free, total = torch.cuda.mem_get_info(number)
    except RuntimeError as error:
        return Gpu(properties.name, properties.total_memory, 0, str(error).splitlines()[0][:200])
    return Gpu(properties.name, total, free)


def read_allowance(root: Path = _CGROUP) -> Allowance:
    """The limits of this container, from the files of cgroups, version 2 or 1."""
    quota = (_text(root / "cpu.max") or "").split()
    if not quota:
        quota = [_text(root / "cpu" / f"cpu.cfs_{part}_us") or "" for part in ("quota", "period")]
    cpus = int(quota[0]) / int(quota[1]) if len(quota) == 2 and all(word.isdigit() for word in quota) else None
    limit = _text(root / "memory.max") or _text(root / "memory" / "memory.limit_in_bytes")
    used = _text(root / "memory.current") or _text(root / "memory" / "memory.usage_in_bytes")
    memory = int(limit) if limit and limit.isdigit() else None
    return Allowance(cpus, memory, int(used) if used and used.isdigit() else 0)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
