"""The trainings of a comparison: planned with all that decides their outcome, run, and found again on disk."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch

from engine.config import as_dict, digest
from engine.cores import usable_cores
from engine.data.dataset import Dataset
from engine.data.files import write_atomically
from engine.detection.build import build_detector
from engine.detection.fitting import fit_detector
from engine.detection.prediction import predict
from engine.detection.samples import Source
from engine.detection.state import remove_state
from engine.detection.zoo.weights import weights_sha256
from engine.errors import RunFailed
from engine.evaluation.arms import ArmPlan
from engine.generation.devices import environment_of, gpus_for
from engine.ldm.device import choose_device
from engine.sections import Settings

_CODE = 3  # raise it with every change of the code after which the same data and settings train otherwise


@dataclass(frozen=True)
class Job:
    """A training of an arm with a seed; its result is at `path`, marked with the digest of all that decides it.

    sources: each dataset that it draws from, json-ready: {dataset: the folder's name, split, images, sha256, share,
    first, last, weights_sha256}.
    """

    arm: ArmPlan
    seed: int
    path: Path
    digest: str
    sources: tuple[dict, ...] = ()


def train_one(job: Job, test: Dataset, settings: Settings, val: Dataset | None = None) -> dict:
    """Train one detector and predict the test split: {"detections", "curve", "seconds"}; where there is a validation
    split, {"validation"} too: the detections on it. A training that was stopped goes on from its state beside the job's
    file."""
    arm, seed = job.arm, job.seed
    options = dataclasses.replace(settings.detector, **arm.detector)
    device = choose_device(settings.ldm.device)
    name = f"{arm.name} seed {seed}"
    built, record = fit_detector(options, arm.sources, seed, name, device, arm.steps_factor, _state_of(job), job.digest)
    found = {"detections": predict(built.module.detect, test, built.frame, device=device)}
    if val is not None:
        found["validation"] = predict(built.module.detect, val, built.frame, device=device)
    return {**found, "curve": record.curve, "seconds": record.seconds}


def plan_jobs(
    arms: Sequence[ArmPlan],
    seeds: Sequence[int],
    out: Path,
    settings: Settings,
    test: Dataset,
    val: Dataset | None = None,
) -> list[Job]:
    """Every training with the digest of all that decides its outcome, seed after seed."""
    # A digest reads every picture: once for a dataset, however many arms and seeds train on it.
    datasets = {id(source.dataset): source.dataset for arm in arms for source in arm.sources}
    digests = {key: dataset.digest() for key, dataset in datasets.items()}
    scored = [split.digest() for split in (test, val) if split is not None]
    decides = {name: value for name, value in as_dict(settings.detector).items() if name != "save_every"}
    decides |= {"weights_sha256": weights_sha256(settings.detector), "code": _CODE, "torch": str(torch.__version__)}
    jobs = []
    for seed in seeds:
        for arm in arms:
            recipes = [[source.recipe(), digests[id(source.dataset)]] for source in arm.sources]
            key = digest([*scored, arm.name, recipes, arm.steps_factor, seed, {**decides, **arm.detector}])
            sources = tuple(source_record(source, digests[id(source.dataset)]) for source in arm.sources)
            jobs.append(Job(arm, seed, out / "arms" / arm.name / f"seed-{seed}.json", key, sources))
    return jobs


def source_record(source: Source, sha256: str) -> dict:
    """What a training draws from, json-ready, as `Job.sources` has it. `sha256`: the dataset's digest."""
    data = source.dataset
    name = data.folder.absolute().name  # no path of this machine, since results travel
    return {
        "dataset": name, "split": data.split, "images": len(data.images), "sha256": sha256, **source.recipe(),
    }  # fmt: skip


def trainings_at_once(settings: Settings) -> int:
    """One process a GPU; on a CPU one a core.

    Raises:
        ModelError: torch does not see the device of the settings.
    """
    if choose_device(settings.ldm.device).type == "cpu":
        return usable_cores()
    return len(gpus_for(settings, 1)) or 1


def run_jobs(
    jobs: list[Job],
    test: Dataset,
    settings: Settings,
    on_progress: Callable[[int, int], None],
    val: Dataset | None = None,
) -> None:
    """Run what is not done yet, one process per GPU, or per core on a CPU (two small trainings beat one with two
    threads)."""
    pending = [job for job in jobs if read_job(job) is None]
    done = len(jobs) - len(pending)
    on_progress(done, len(jobs))
    if not pending:
        return
    build_detector(settings.detector, len(test.categories))  # what cannot be built is said before anything is trained
    workers = min(len(pending), trainings_at_once(settings))
    failures = []
    with open_pool(workers, gpus_for(settings, 1)) as pool:
        futures = {pool.submit(_run, job, test, settings, val): job for job in pending}
        for future in as_completed(futures):
            job = futures[future]
            try:
                future.result()
                done += 1
                on_progress(done, len(jobs))
            except BrokenProcessPool:
                failures.append(f"{job.arm.name} seed {job.seed}: its process was killed (out of memory?)")
            except Exception as error:
                failures.append(f"{job.arm.name} seed {job.seed}: {error}")
    if failures:
        raise RunFailed("Trainings failed; run again to go on with the rest:\n  " + "\n  ".join(failures[:10]))


def open_pool(workers: int, gpus: Sequence[str]) -> ProcessPoolExecutor:
    """Worker processes, each with a GPU of its own for as long as it lives: at most one training is on a GPU.

    Args:
        gpus: names as in CUDA_VISIBLE_DEVICES, at least one a worker; none where there is no GPU.
    """
    context = multiprocessing.get_context("spawn")
    left = context.SimpleQueue()
    for gpu in gpus:
        left.put(gpu)
    return ProcessPoolExecutor(
        workers, mp_context=context, initializer=_settle, initargs=(workers, left if gpus else None)
    )


def _settle(workers: int, left: SimpleQueue | None) -> None:
    """In a worker process, before its first training: take a GPU that is left, and a share of the cores."""
    if left is not None:
        # CUDA reads it at its first use, which is later than the import of torch.
        os.environ.update(environment_of(left.get()))
    if workers > 1:
        # One thread on a CPU however many workers there are: the number of threads changes the last bits of a training.
        torch.set_num_threads(1 if left is None else max(1, usable_cores() // workers))


def _run(job: Job, test: Dataset, settings: Settings, val: Dataset | None) -> None:
    result = train_one(job, test, settings, val)
    job.path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(job.path, json.dumps({"digest": job.digest, **result}).encode())
    remove_state(_state_of(job))


def _state_of(job: Job) -> Path:
    """Named by what it is of: a state of other data or settings is never in the way."""
    return job.path.with_name(f"{job.path.stem}-{job.digest[:12]}.state.safetensors")


def read_job(job: Job) -> dict | None:
    """The training's result if it is there, whole, and of these very data and settings."""
    try:
        result = json.loads(job.path.read_text(encoding="utf-8"))
        return result if result["digest"] == job.digest else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
