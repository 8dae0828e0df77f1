"""Which GPU a worker process draws on: one of its own."""

from __future__ import annotations

import os

from engine.cores import usable_cores
from engine.errors import ConfigError
from engine.sections import Settings

_MOST_ON_CPU = 4


def gpus_for(settings: Settings, workers: int) -> list[str]:
    """The GPUs of this machine to choose from, as in CUDA_VISIBLE_DEVICES; none where the models run elsewhere.

    Raises:
        ConfigError: no worker, or more of them than GPUs.
        ModelError: torch does not see the device of the settings.
    """
    from engine.ldm.device import choose_device

    check_workers(workers)
    if choose_device(settings.ldm.device).type != "cuda":
        return []
    visible = _visible()
    if workers > len(visible):
        raise ConfigError(f"{workers} workers want a GPU each, and there are {len(visible)}. Ask for fewer.")
    return visible


def usual_workers(settings: Settings) -> int:
    """Workers where nobody says how many: one a GPU; on a CPU one a core, but few, since each holds the models.

    Raises:
        ModelError: torch does not see the device of the settings.
    """
    from engine.ldm.device import choose_device

    kind = choose_device(settings.ldm.device).type
    return len(_visible()) if kind == "cuda" else 1 if kind != "cpu" else min(_MOST_ON_CPU, usable_cores())


def check_workers(workers: int) -> None:
    """Raises ConfigError where no worker is asked for."""
    if workers < 1:
        raise ConfigError(f"The number of workers must be at least 1, not {workers}.")


def environment_of(gpu: str) -> dict[str, str]:
    """What a process needs in its environment to see this GPU and no other."""
    return {"CUDA_VISIBLE_DEVICES": gpu}


def _visible() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named:
        return [name.strip() for name in named.split(",")]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]
