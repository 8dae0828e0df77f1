"""How many trainings run at once, and on what."""

from __future__ import annotations

import os

import pytest
import torch

from engine.config import load_settings
from engine.data.dataset import read_dataset
from engine.evaluation import trainings
from engine.evaluation.arms import plan_arms


@pytest.fixture
def three_gpus(monkeypatch):
    """A machine with three GPUs, as far as this process can tell."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return monkeypatch


def test_as_many_trainings_at_once_as_gpus(three_gpus):
    assert trainings.trainings_at_once(load_settings(None, ["ldm.device=cuda"])) == 3
    assert trainings.trainings_at_once(load_settings(None, ["ldm.device=cpu"])) == os.cpu_count()
    three_gpus.setenv("CUDA_VISIBLE_DEVICES", "1,GPU-ab12")
    assert trainings.trainings_at_once(load_settings()) == 2


def test_a_worker_process_sees_the_gpu_that_it_was_given(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with trainings.open_pool(1, ["7"]) as pool:
        # It keeps it: the second training is on the same one.
        assert [pool.submit(os.getenv, "CUDA_VISIBLE_DEVICES").result() for _ in range(2)] == ["7", "7"]
    with trainings.open_pool(1, []) as pool:
        assert pool.submit(os.getenv, "CUDA_VISIBLE_DEVICES").result() is None
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_no_two_workers_have_the_same_gpu(monkeypatch):
    """What each new process does first, three times over in this one."""
    pool = trainings.open_pool(3, ["0", "1", "GPU-ab12"])
    seen, threads = [], torch.get_num_threads()
    for _ in range(3):
        with monkeypatch.context() as environment:
            environment.setenv("CUDA_VISIBLE_DEVICES", "")
            pool._initializer(*pool._initargs)
            seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
    torch.set_num_threads(threads)
    pool.shutdown()
    assert seen == ["0", "1", "GPU-ab12"]


def test_a_job_says_what_it_trains_on(world_folder, tmp_path):
    settings = load_settings(None, ["compare.controls=[generated_first, strong_augmentation]"])
    real, drawn, test = (read_dataset(world_folder, split) for split in ("train", "val", "test"))
    jobs = trainings.plan_jobs(plan_arms(real, drawn, settings.compare), [0], tmp_path, settings, test)
    alone, _, first, strong = (job.sources for job in jobs)
    name = world_folder.name
    whole = {"split": "train", "images": len(real.images), "sha256": real.digest(), "share": 1.0}
    assert alone == strong == ({"dataset": name, **whole, "first": 0.0, "last": 1.0, "weights_sha256": None},)
    assert [(s["split"], s["sha256"], s["last"]) for s in first] == [
        ("train", real.digest(), 1.0),
        ("val", drawn.digest(), settings.compare.generated_until),
    ]


def test_a_training_of_other_code_or_another_torch_is_not_taken_for_this_one(world_folder, tmp_path, monkeypatch):
    settings = load_settings()
    real, drawn, test = (read_dataset(world_folder, split) for split in ("train", "val", "test"))
    arms = plan_arms(real, drawn, settings.compare)

    def key():
        return trainings.plan_jobs(arms, [0], tmp_path, settings, test)[0].digest

    before = key()
    assert key() == before
    for target, value in (("_CODE", trainings._CODE + 1), ("torch.__version__", "0.1")):
        with monkeypatch.context() as changed:
            changed.setattr(f"engine.evaluation.trainings.{target}", value)
            assert key() != before
