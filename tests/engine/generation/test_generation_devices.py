from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from conftest import make_settings, result

from engine.cores import usable_cores
from engine.errors import ConfigError
from engine.generation import devices, run
from engine.generation.worker_process import WorkerProcess


@pytest.fixture
def cuda(monkeypatch):
    """A machine with GPUs, as far as this code can tell."""
    monkeypatch.setattr("engine.ldm.device.choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return monkeypatch


def test_the_gpus_to_choose_from(cuda):
    settings = make_settings()
    assert devices.gpus_for(settings, 2) == ["0", "1", "2"]
    cuda.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-ab12")
    assert devices.gpus_for(settings, 2) == ["5", "GPU-ab12"]
    with pytest.raises(ConfigError, match="3 workers want a GPU each, and there are 2"):
        devices.gpus_for(settings, 3)


def test_unasked_there_are_as_many_workers_as_gpus(cuda):
    settings = make_settings()
    assert devices.usual_workers(settings) == 3 == len(devices.gpus_for(settings, devices.usual_workers(settings)))
    cuda.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert devices.usual_workers(settings) == 1


def test_without_cuda_there_are_none():
    assert devices.gpus_for(make_settings(), 7) == []
    assert 1 <= devices.usual_workers(make_settings()) <= usable_cores()


def test_each_worker_process_sees_one_gpu_of_its_own(bench, unbroken, cuda):
    seen = []

    class Noting(WorkerProcess):
        def __exit__(self, *error):
            environment = Path(f"/proc/{self.pid}/environ").read_bytes().split(b"\0")
            seen.extend(entry for entry in environment if entry.startswith(b"CUDA_VISIBLE_DEVICES"))
            super().__exit__(*error)

    cuda.setattr(run, "WorkerProcess", Noting)
    assert result(bench.generate(workers=3)) == result(unbroken)
    assert sorted(seen) == [b"CUDA_VISIBLE_DEVICES=%d" % n for n in range(3)]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
