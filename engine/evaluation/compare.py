"""`de compare`: does the generated data help? The same detector on real and on real + generated data.

Every arm has the same number of optimisation steps (two controls say that they have more), the same schedule and the
same seeds. The last weights are scored, or their average: none is selected. The test split is scored once a trained
detector exists, and nothing is chosen by it; before that it is only searched for images that are trained on. The
validation split, where there is one, is scored beside it: what is drawn next may follow those scores (see
`engine.generation.weakness`). Each training leaves its own file, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from engine.curation.training_labels import training_labels
from engine.data.dataset import Dataset, read_dataset
from engine.errors import ConfigError, DatasetError
from engine.evaluation.arms import TREATMENT, plan_arms
from engine.evaluation.leakage import search_leaks
from engine.evaluation.outcome import Comparison, write_outcome
from engine.evaluation.pinned import VersionOf, no_version, trained_on
from engine.evaluation.scaling import nested_subset
from engine.evaluation.trainings import plan_jobs, run_jobs
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
        DatasetError: splits missing, without objects or with different classes, nothing generated was accepted, a
            generated dataset is not as it was generated, or an image that is trained on repeats a test image.
        ConfigError: a control or the name of a further dataset that cannot be, or fewer than two seeds.
        RunFailed: a training failed; the others are kept and a second run goes on.
    """
    train, test = read_dataset(real, "train"), read_dataset(real, "test")
    val = _read_validation(real)
    check_objects(train, "there is nothing to learn from")
    check_objects(test, "nothing can be scored on it")
    count = list(range(seeds or settings.compare.seeds))
    if len(count) < 2:
        raise ConfigError(f"An interval needs at least 2 seeds per arm, got {len(count)}: raise compare.seeds.")
    check_classes({"train.json": train, "test.json": test} | ({"val.json": val} if val else {}))
    accepted = read_generated(generated, train)
    others = {name: read_generated(folder, train) for name, folder in (further or {}).items()}
    arms = plan_arms(train, accepted, settings.compare, others)
    scaled = _scaled(train, accepted, settings)
    taken = set(others) & set(scaled)
    if taken:
        raise ConfigError(f"--arm {min(taken)}=...: compare.scaling has an arm of that name. Choose another.")
    for arm in plan_arms(train, accepted, dataclasses.replace(settings.compare, controls=()), scaled)[2:]:
        arms.append(dataclasses.replace(arm, note=f"{TREATMENT} with {len(scaled[arm.name].images)} generated images"))
    leakage = search_leaks(real, {"train": train, "generated": accepted, **others}, test, settings.compare, ldm)
    pinned = trained_on(
        (real, {"train": train.digest(), "test": test.digest()}),
        (generated, accepted),
        {name: (folder, others[name]) for name, folder in (further or {}).items()},
        version_of,
    )
    jobs = plan_jobs(arms, count, out, settings, test, val)
    run_jobs(jobs, test, settings, on_progress, val)
    comparison = Comparison(
        *(real, generated, settings, train, val, test, accepted),
        further=further or {},
        scaled=scaled,
        arms=arms,
        seeds=count,
        ldm=ldm,
        leakage=leakage,
        pinned=pinned,
    )
    return write_outcome(comparison, jobs, out)


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


def check_objects(dataset: Dataset, why: str) -> None:
    """Raises DatasetError where a dataset holds no object, ignore regions aside. why: what it is in the way of."""
    if all(annotation.iscrowd for annotation in dataset.annotations):
        raise DatasetError(f"{dataset.folder / f'{dataset.split}.json'} holds no object: {why}. Label some images.")


def check_classes(datasets: dict[str, Dataset]) -> None:
    """Raises DatasetError where datasets, by what messages call them, list different classes."""
    first_name, first = next(iter(datasets.items()))
    for name, dataset in datasets.items():
        if dataset.categories != first.categories:
            raise DatasetError(
                f"{name} lists the classes {[c.name for c in dataset.categories]}, {first_name} lists "
                f"{[c.name for c in first.categories]}: they must be the same. Import or generate the data again."
            )
