"""`de compare`: does the generated data help? The same detector on real and on real + generated data.

Every arm has the same number of optimisation steps, the same schedule and the same seeds; the test split is read once
a trained detector exists, and nothing is chosen by it. Each training leaves its own file, so a run that was stopped
goes on where it was.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from engine.config import Settings, as_dict, digest
from engine.curation.decisions import read_decisions
from engine.data.dataset import Dataset, read_dataset
from engine.data.files import write_atomically
from engine.detection.build import build_detector
from engine.detection.prediction import predict
from engine.detection.samples import BatchSource
from engine.detection.schedule import OptimisationSettings
from engine.detection.training import fit
from engine.detection.zoo.weights import weights_sha256
from engine.errors import DatasetError, RunFailed
from engine.evaluation.arms import BASELINE, TREATMENT, ArmPlan, accepted_only, plan_arms
from engine.evaluation.coco_map import evaluate
from engine.evaluation.curves import precision_recall_of
from engine.evaluation.matching import image_results
from engine.evaluation.per_image import largest_changes
from engine.evaluation.results import Arm, build_results, write_results
from engine.evaluation.statistics import paired_difference
from engine.generation.integrity import check_unchanged
from engine.ldm.device import choose_device


@dataclass(frozen=True)
class _Job:
    arm: ArmPlan
    seed: int
    path: Path
    digest: str


def compare(
    real: Path,
    generated: Path,
    out: Path,
    settings: Settings,
    seeds: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """Train every arm with every seed, score on the untouched test split, write results.json and report.html.

    Args:
        real: dataset folder with train.json and test.json. generated: dataset folder with annotations.json; images that
            review rejected (decisions.json) are left out.
        on_progress: called with (trainings done, trainings in all).

    Raises:
        DatasetError: splits missing or with different classes, nothing generated was accepted, or the generated
            dataset is not as it was generated.
        RunFailed: a training failed; the others are kept and a second run goes on.
    """
    train, test = read_dataset(real, "train"), read_dataset(real, "test")
    drawn = read_dataset(generated, "annotations")
    _check_classes({"train.json": train, "test.json": test, "the generated annotations.json": drawn})
    check_unchanged(generated, drawn.images)
    accepted = accepted_only(drawn, read_decisions(generated, drawn))
    if not accepted.images:
        raise DatasetError(f"{generated}: review accepted no image, so there is nothing to compare. Loosen `review`.")
    count = seeds or settings.compare.seeds
    arms = plan_arms(train, accepted, settings.compare)
    jobs = _plan_jobs(arms, list(range(count)), out, settings, train, accepted, test)
    _run_jobs(jobs, test, settings, on_progress)
    return _write(real, generated, out, settings, arms, jobs, train, test, accepted, list(range(count)))


def train_one(arm: ArmPlan, seed: int, test: Dataset, settings: Settings) -> dict:
    """Train one detector and predict the test split: {"detections", "curve", "seconds"}."""
    options = settings.detector
    device = choose_device(settings.ldm.device)
    torch.manual_seed(seed)
    built = build_detector(options, len(test.categories))
    built.module.to(device).train()
    optimisation = OptimisationSettings.of(options, arm.steps_factor)
    record = fit(
        built.module,
        BatchSource.of(options, arm.sources, built.frame, seed, optimisation.steps),
        optimisation,
        f"{arm.name} seed {seed}",
        device,
    )
    built.module.eval()
    detections = predict(built.module.detect, test, built.frame, device=device)
    return {"detections": detections, "curve": record.curve, "seconds": record.seconds}


def _plan_jobs(arms, seeds, out: Path, settings: Settings, train, accepted, test) -> list[_Job]:
    """Every training with the digest of all that decides its outcome."""
    data = [train.digest(), accepted.digest(), [image.id for image in accepted.images], test.digest()]
    decides = {name: value for name, value in as_dict(settings.detector).items() if name != "save_every"}
    decides["weights_sha256"] = weights_sha256(settings.detector)
    jobs = []
    for seed in seeds:
        for arm in arms:
            recipes = [source.recipe() for source in arm.sources]
            key = digest([data, arm.name, recipes, arm.steps_factor, seed, decides])
            jobs.append(_Job(arm, seed, out / "arms" / arm.name / f"seed-{seed}.json", key))
    return jobs


def _run_jobs(jobs: list[_Job], test: Dataset, settings: Settings, on_progress: Callable[[int, int], None]) -> None:
    """Run what is not done yet, one process per core on a CPU (two small trainings beat one with two threads)."""
    pending = [job for job in jobs if _read_job(job) is None]
    done = len(jobs) - len(pending)
    on_progress(done, len(jobs))
    if not pending:
        return
    build_detector(settings.detector, len(test.categories))  # what cannot be built is said before anything is trained
    workers = 1 if choose_device(settings.ldm.device).type != "cpu" else min(len(pending), os.cpu_count() or 1)
    context = multiprocessing.get_context("spawn")
    failures = []
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread, initargs=(workers,)) as pool:
        futures = {pool.submit(_run_job, job, test, settings): job for job in pending}
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


def _one_thread(workers: int) -> None:
    if workers > 1:
        torch.set_num_threads(1)


def _run_job(job: _Job, test: Dataset, settings: Settings) -> None:
    result = train_one(job.arm, job.seed, test, settings)
    job.path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(job.path, json.dumps({"digest": job.digest, **result}).encode())


def _read_job(job: _Job) -> dict | None:
    """The training's result if it is there, whole, and of these very data and settings."""
    try:
        result = json.loads(job.path.read_text(encoding="utf-8"))
        return result if result["digest"] == job.digest else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(real, generated, out, settings, arms, jobs, train, test, accepted, seeds) -> dict:
    from engine.report import changed_images, compare_command, gallery_from, write_report

    results_of = {(job.arm.name, job.seed): _read_job(job) for job in jobs}
    scored = {key: image_results(test, result["detections"]) for key, result in results_of.items()}
    summary = [
        Arm(
            arm.name,
            [evaluate(test, results_of[arm.name, s]["detections"]) for s in seeds],
            [results_of[arm.name, s]["curve"] for s in seeds],
            sum(len(source.dataset.images) for source in arm.sources),
            sum(s.share for s in arm.sources[1:]),
            [results_of[arm.name, s]["seconds"] for s in seeds],
            {"note": arm.note, "steps": round(settings.detector.steps * arm.steps_factor)},
        )
        for arm in arms
    ]
    differences = {
        arm.name: paired_difference(
            [scored[BASELINE, s] for s in seeds],
            [scored[arm.name, s] for s in seeds],
            resamples=settings.compare.bootstrap,
        )
        for arm in arms[1:]
    }
    by_arm = {arm.name: [scored[arm.name, s] for s in seeds] for arm in arms}
    results = build_results(
        summary,
        differences,
        baseline=BASELINE,
        treatment=TREATMENT,
        seeds=seeds,
        settings=as_dict(settings),
        versions=versions(),
        data={
            "real": real.name,
            "train": {"images": len(train.images), "objects": len(train.annotations), "sha256": train.digest()},
            "test": {"images": len(test.images), "objects": len(test.annotations), "sha256": test.digest()},
            "accepted": {"images": len(accepted.images), "objects": len(accepted.annotations)},
        },
        generated=_generated_summary(generated, accepted),
        adapter=_read_json(generated / "manifest.json").get("identity", {}).get("adapter"),
    )
    results["precision_recall"] = precision_recall_of(by_arm)
    results["changes"] = largest_changes(by_arm[BASELINE], by_arm[TREATMENT], seeds)
    write_results(out / "results.json", results)
    found = [{s: results_of[name, s]["detections"] for s in seeds} for name in (BASELINE, TREATMENT)]
    write_report(
        results,
        out,
        gallery_from(generated, real),
        changed_images(results["changes"], test, *found),
        commands=[compare_command(real, generated, out, len(seeds), settings)],
    )
    return results


def _generated_summary(generated: Path, accepted: Dataset) -> dict:
    """The manifest's counts, what review rejected and why, and the labels that training may use."""
    reasons = _read_json(generated / "decisions.json").get("rejected", {}).values()
    rejected = Counter(reason.partition(":")[0] for reason in reasons)  # "duplicate: repeats generated image 4"
    names = {category.id: category.name for category in accepted.categories}
    objects = Counter(names[a.category_id] for a in accepted.annotations if not a.iscrowd)
    manifest = _read_json(generated / "manifest.json")
    return {
        **manifest.get("counts", {}),
        "drawn_with": {
            "ldm": manifest.get("identity", {}).get("ldm"),
            "seed": manifest.get("seed"),
            **manifest.get("settings", {}).get("generation", {}),
        },
        "rejected": dict(rejected),
        "accepted": len(accepted.images),
        "objects_per_class": dict(objects),
    }


def versions() -> dict:
    """Of Python and the packages that decide the numbers."""
    names = ("torch", "torchvision", "diffusers", "transformers", "pycocotools", "numpy", "diffusion-engine")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _check_classes(datasets: dict[str, Dataset]) -> None:
    first_name, first = next(iter(datasets.items()))
    for name, dataset in datasets.items():
        if dataset.categories != first.categories:
            raise DatasetError(
                f"{name} lists the classes {[c.name for c in dataset.categories]}, {first_name} lists "
                f"{[c.name for c in first.categories]}: they must be the same. Import or generate the data again."
            )
