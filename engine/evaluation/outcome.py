"""What a comparison found, once its detectors are trained: results.json and report.html."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

from engine.config import as_dict
from engine.data.dataset import Dataset
from engine.evaluation.arms import BASELINE, TREATMENT, ArmPlan
from engine.evaluation.coco_map import evaluate
from engine.evaluation.curves import precision_recall_of
from engine.evaluation.matching import image_results
from engine.evaluation.per_image import largest_changes
from engine.evaluation.resampled import difference, differences_by_score, resample
from engine.evaluation.results import Arm, build_results, write_results
from engine.evaluation.scaling import scaling_of
from engine.evaluation.trainings import Job, read_job
from engine.sections import LdmSettings, Settings


@dataclass(frozen=True)
class Comparison:
    """What was compared.

    Attributes:
        real, generated: the folders; train, val, test, accepted: what was read of them. val: None where there is none.
        further: folders of the other generated datasets, by the name of their arm.
        scaled: subsets of the generated images, by the name of their arm.
        seeds: of the trainings of each arm.
        ldm: the model that leaks were searched with; leakage: what was found, pinned: the digests of all datasets.
    """

    real: Path
    generated: Path
    settings: Settings
    train: Dataset
    val: Dataset | None
    test: Dataset
    accepted: Dataset
    further: Mapping[str, Path]
    scaled: Mapping[str, Dataset]
    arms: Sequence[ArmPlan]
    seeds: Sequence[int]
    ldm: LdmSettings | None
    leakage: Mapping
    pinned: Mapping


def write_outcome(comparison: Comparison, jobs: Sequence[Job], out: Path) -> dict:
    """Write results.json and report.html of the trained jobs of every arm and seed. Returns what the first holds."""
    from engine.report import changed_images, compare_command, gallery_from, write_report

    trained = _Trained(comparison, jobs)
    results = trained.results()
    write_results(out / "results.json", results)
    c = comparison
    write_report(
        results,
        out,
        gallery_from(c.generated, c.real),
        changed_images(results["changes"], c.test, *(trained.detections(name) for name in (BASELINE, TREATMENT))),
        commands=[compare_command(c.real, c.generated, out, len(c.seeds), c.settings, results["further"], c.ldm)],
    )
    return results


class _Trained:
    """A comparison and what its trainings left."""

    def __init__(self, comparison: Comparison, jobs: Sequence[Job]):
        self.comparison = comparison
        self.left = {(job.arm.name, job.seed): read_job(job) for job in jobs}
        self.sources = {job.arm.name: job.sources for job in jobs}

    def detections(self, arm: str) -> dict[int, list]:
        """On the test images, by seed."""
        return {seed: self.left[arm, seed]["detections"] for seed in self.comparison.seeds}

    @cached_property
    def by_arm(self) -> dict[str, list]:
        """How the test images came out, once per seed."""
        test = self.comparison.test
        return {
            a.name: [image_results(test, d) for d in self.detections(a.name).values()] for a in self.comparison.arms
        }

    def results(self) -> dict:
        c = self.comparison
        bootstrap = c.settings.compare.bootstrap
        resampled = {name: resample(seen, bootstrap) for name, seen in self.by_arm.items()}
        results = build_results(
            [self._arm(arm) for arm in c.arms],
            {arm.name: difference(resampled[arm.baseline], resampled[arm.name]) for arm in c.arms[1:]},
            baselines={arm.name: arm.baseline for arm in c.arms},
            against={
                arm.name: difference(resampled[arm.name], resampled[TREATMENT])
                for arm in c.arms
                if arm.name not in (TREATMENT, *c.scaled)
            },
            by_score=differences_by_score(resampled[BASELINE], resampled[TREATMENT]),
            baseline=BASELINE,
            treatment=TREATMENT,
            seeds=c.seeds,
            settings=as_dict(c.settings),
            versions=versions(),
            data=_data(c),
            generated=_generated_summary(c.generated, c.accepted),
            adapter=_read_json(c.generated / "manifest.json").get("identity", {}).get("adapter"),
        )
        results |= {
            "leakage": c.leakage,
            "further": {name: str(folder) for name, folder in c.further.items()},
            "trained_on": c.pinned,
            "searched_with": None if c.ldm is None else c.ldm.id,
            "precision_recall": precision_recall_of(self.by_arm),
            "changes": largest_changes(self.by_arm[BASELINE], self.by_arm[TREATMENT], c.seeds),
        }
        if c.scaled:
            results["scaling"] = self._scaling(results["arms"])
        return results

    def _arm(self, arm: ArmPlan) -> Arm:
        c = self.comparison
        left = [self.left[arm.name, seed] for seed in c.seeds]
        return Arm(
            arm.name,
            [evaluate(c.test, one["detections"]) for one in left],
            [one["curve"] for one in left],
            sum(len(source.dataset.images) for source in arm.sources),
            sum(s.share * (s.last - s.first) for s in arm.sources[1:]),
            [one["seconds"] for one in left],
            {"note": arm.note, "steps": round(c.settings.detector.steps * arm.steps_factor)},
            [evaluate(c.val, one["validation"]) for one in left] if c.val else (),
            self.sources[arm.name],
            arm.detector,
        )

    def _scaling(self, arms: Mapping) -> dict:
        """The curve over the multiples of the real images, from none on to all that were accepted."""
        c = self.comparison
        points = {0: arms[BASELINE]["map"], len(c.accepted.images): arms[TREATMENT]["map"]}
        points |= {len(data.images): arms[name]["map"] for name, data in c.scaled.items()}
        points = [(count / len(c.train.images), count, scores) for count, scores in points.items()]
        return scaling_of(points, c.settings.compare.worthwhile_gain / 100)


def _data(comparison: Comparison) -> dict:
    c, digests = comparison, comparison.pinned["real"]["content"]
    splits = [("train", c.train, digests["train"]), ("test", c.test, digests["test"])]
    splits += [("val", c.val, c.val.digest())] if c.val else []
    counted = {name: {**_counts(data), "sha256": digest} for name, data, digest in splits}
    return {"real": c.real.name, **counted, "accepted": _counts(c.accepted)}


def _counts(data: Dataset) -> dict:
    ignored = sum(a.iscrowd for a in data.annotations)
    return {"images": len(data.images), "objects": len(data.annotations) - ignored, "ignored": ignored}


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
