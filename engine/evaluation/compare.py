"""`de compare`: does the generated data help? The same detector on real and on real + generated data.

Every arm has the same number of optimisation steps (two controls say that they have more), the same schedule and the
same seeds. The last weights are scored, or their average: none is selected. The test split is scored once a trained
detector exists, and nothing is chosen by it; before that it is only searched for images that are trained on. The
validation split, where there is one, is scored beside it: what is drawn next may follow those scores (see
`engine.generation.weakness`). Each training leaves its own file, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from engine.config import as_dict
from engine.curation.training_labels import training_labels
from engine.data.dataset import Dataset, read_dataset
from engine.errors import ConfigError, DatasetError
from engine.evaluation.arms import BASELINE, TREATMENT, plan_arms
from engine.evaluation.coco_map import evaluate
from engine.evaluation.curves import precision_recall_of
from engine.evaluation.leakage import search_leaks
from engine.evaluation.matching import image_results
from engine.evaluation.per_image import largest_changes
from engine.evaluation.pinned import VersionOf, no_version, trained_on
from engine.evaluation.resampled import difference, differences_by_score, resample
from engine.evaluation.results import Arm, build_results, write_results
from engine.evaluation.scaling import nested_subset, scaling_of
from engine.evaluation.trainings import plan_jobs, read_job, run_jobs
from engine.generation.integrity import check_unchanged
from engine.sections import LdmSettings, Settings

log = logging.getLogger(__name__)


def compare(
    real: Path,
    generated: Path,
    out: Path,
    settings: Settings,
    seeds: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    further: Mapping[str, Path] | None = None,
    ldm: LdmSettings | None = None,
    version_of: VersionOf = no_version,
) -> dict:
    """Train every arm with every seed, score on the untouched test split, write results.json and report.html.

    Args:
        real: dataset folder with train.json and test.json, and val.json if validation scores are wanted.
        generated: dataset folder with annotations.json; images that review rejected are left out, and boxes are as a
            person left them (`training_labels`). further: more of them, an arm each, by name.
        ldm: a diffusion model whose features are compared too in the search for leaks.
        on_progress: called with (trainings done, trainings in all).
        version_of: names the version of a dataset by its digests, for results.json.

    Raises:
        DatasetError: splits missing or with different classes, nothing generated was accepted, a generated dataset is
            not as it was generated, or an image that is trained on repeats a test image.
        ConfigError: a control or the name of a further dataset that cannot be.
        RunFailed: a training failed; the others are kept and a second run goes on.
    """
    train, test = read_dataset(real, "train"), read_dataset(real, "test")
    val = _read_validation(real)
    check_classes({"train.json": train, "test.json": test} | ({"val.json": val} if val else {}))
    accepted = read_generated(generated, train)
    others = {name: read_generated(folder, train) for name, folder in (further or {}).items()}
    arms = plan_arms(train, accepted, settings.compare, others)
    scaled = _scaled(train, accepted, settings)
    taken = set(others) & set(scaled)
    if taken:
        raise ConfigError(f"--arm {min(taken)}=...: compare.scaling has an arm of that name. Choose another.")
    arms += plan_arms(train, accepted, dataclasses.replace(settings.compare, controls=()), scaled)[2:]
    leakage = search_leaks(real, {"train": train, "generated": accepted, **others}, test, settings.compare, ldm)
    pinned = trained_on(
        (real, {"train": train.digest(), "test": test.digest()}),
        (generated, accepted),
        {name: (folder, others[name]) for name, folder in (further or {}).items()},
        version_of,
    )
    count = list(range(seeds or settings.compare.seeds))
    jobs = plan_jobs(arms, count, out, settings, test, val)
    run_jobs(jobs, test, settings, on_progress, val)
    multiples = {name: len(data.images) / len(train.images) for name, data in scaled.items()}
    extra = {"leakage": leakage, "further": {name: str(folder) for name, folder in (further or {}).items()}}
    extra |= {"trained_on": pinned, "searched_with": None if ldm is None else ldm.id}
    return _write(real, generated, out, settings, arms, jobs, train, test, val, accepted, count, multiples, extra, ldm)


def _read_validation(real: Path) -> Dataset | None:
    """The validation split; None where there is none, or none of its images is left."""
    val = read_dataset(real, "val") if (real / "val.json").is_file() else None
    return val if val and val.images else None


def read_generated(folder: Path, train: Dataset) -> Dataset:
    """What training uses of a generated dataset, which is checked to be as it was generated.

    Raises:
        DatasetError: it cannot be read, was changed since, has other classes than `train`, or nothing was accepted.
    """
    drawn = read_dataset(folder, "annotations")
    check_classes({"train.json": train, f"{folder / 'annotations.json'}": drawn})
    check_unchanged(folder, drawn.images)
    accepted = training_labels(folder, drawn)
    if not accepted.images:
        raise DatasetError(f"{folder}: review accepted no image, so there is nothing to train on. Loosen `review`.")
    return accepted


def _scaled(train: Dataset, accepted: Dataset, settings: Settings) -> dict[str, Dataset]:
    """Subsets of the generated images for the scaling curve, by the name of their arm."""
    scaled = {}
    for multiple in sorted(set(settings.compare.scaling)):
        count = round(multiple * len(train.images))
        if 0 < count <= len(accepted.images):
            scaled[f"x{multiple:g}"] = nested_subset(accepted, count)
        else:
            log.warning(
                "compare.scaling: %g times %d real images are %d, and %d generated ones were accepted: left out.",
                *(multiple, len(train.images), count, len(accepted.images)),
            )
    return scaled


def _write(
    real, generated, out, settings, arms, jobs, train, test, val, accepted, seeds: Sequence[int], multiples, extra, ldm
) -> dict:
    from engine.report import changed_images, compare_command, gallery_from, write_report

    results_of = {(job.arm.name, job.seed): read_job(job) for job in jobs}
    scored = {key: image_results(test, result["detections"]) for key, result in results_of.items()}
    sources = {job.arm.name: job.sources for job in jobs}
    summary = [
        Arm(
            arm.name,
            [evaluate(test, results_of[arm.name, s]["detections"]) for s in seeds],
            [results_of[arm.name, s]["curve"] for s in seeds],
            sum(len(source.dataset.images) for source in arm.sources),
            sum(s.share * (s.last - s.first) for s in arm.sources[1:]),
            [results_of[arm.name, s]["seconds"] for s in seeds],
            {"note": arm.note, "steps": round(settings.detector.steps * arm.steps_factor)},
            [evaluate(val, results_of[arm.name, s]["validation"]) for s in seeds] if val else (),
            sources[arm.name],
            arm.detector,
        )
        for arm in arms
    ]
    by_arm = {arm.name: [scored[arm.name, s] for s in seeds] for arm in arms}
    resampled = {name: resample(seen, settings.compare.bootstrap) for name, seen in by_arm.items()}
    differences = {arm.name: difference(resampled[arm.baseline], resampled[arm.name]) for arm in arms[1:]}
    against = {
        arm.name: difference(resampled[arm.name], resampled[TREATMENT])
        for arm in arms
        if arm.name not in (TREATMENT, *multiples)
    }
    digests = extra["trained_on"]["real"]["content"]
    results = build_results(
        summary,
        differences,
        baselines={arm.name: arm.baseline for arm in arms},
        against=against,
        by_score=differences_by_score(resampled[BASELINE], resampled[TREATMENT]),
        baseline=BASELINE,
        treatment=TREATMENT,
        seeds=seeds,
        settings=as_dict(settings),
        versions=versions(),
        data={
            "real": real.name,
            "train": {"images": len(train.images), "objects": len(train.annotations), "sha256": digests["train"]},
            "test": {"images": len(test.images), "objects": len(test.annotations), "sha256": digests["test"]},
            **(
                {"val": {"images": len(val.images), "objects": len(val.annotations), "sha256": val.digest()}}
                if val
                else {}
            ),
            "accepted": {"images": len(accepted.images), "objects": len(accepted.annotations)},
        },
        generated=_generated_summary(generated, accepted),
        adapter=_read_json(generated / "manifest.json").get("identity", {}).get("adapter"),
    )
    results |= extra
    if multiples:
        points = [(0.0, 0, results["arms"][BASELINE]["map"])]
        points += [(m, round(m * len(train.images)), results["arms"][name]["map"]) for name, m in multiples.items()]
        results["scaling"] = scaling_of(points, settings.compare.worthwhile_gain / 100)
    results["precision_recall"] = precision_recall_of(by_arm)
    results["changes"] = largest_changes(by_arm[BASELINE], by_arm[TREATMENT], seeds)
    write_results(out / "results.json", results)
    found = [{s: results_of[name, s]["detections"] for s in seeds} for name in (BASELINE, TREATMENT)]
    write_report(
        results,
        out,
        gallery_from(generated, real),
        changed_images(results["changes"], test, *found),
        commands=[compare_command(real, generated, out, len(seeds), settings, extra["further"], ldm)],
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


def check_classes(datasets: dict[str, Dataset]) -> None:
    """Raises DatasetError where datasets, by what messages call them, list different classes."""
    first_name, first = next(iter(datasets.items()))
    for name, dataset in datasets.items():
        if dataset.categories != first.categories:
            raise DatasetError(
                f"{name} lists the classes {[c.name for c in dataset.categories]}, {first_name} lists "
                f"{[c.name for c in first.categories]}: they must be the same. Import or generate the data again."
            )
