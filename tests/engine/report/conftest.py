"""A generated dataset of rendered scenes and a comparison with made-up scores: for the look of the page only."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from engine.data.dataset import Annotation, Category, ImageRecord, write_dataset
from engine.data.world import CLASSES, render_scene
from engine.evaluation.coco_map import Metrics
from engine.evaluation.results import Arm, build_results
from engine.evaluation.statistics import combine


def write_scenes(folder, split, seeds, de=None):
    """Rendered scenes as a dataset; de(index) gives provenance, and then every box carries a score."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for index, seed in enumerate(seeds, start=1):
        scene = render_scene(seed)
        scene.image.save(folder / "images" / f"{index}.png")
        extra = {"caption": scene.caption} | ({"de": de(index)} if de else {})
        images.append(ImageRecord(index, f"{index}.png", *scene.image.size, extra))
        for thing in scene.objects:
            x, y, w, h = thing.box_xywh
            score = {"score": round(float(rng.uniform(0.3, 1)), 3)} if de else {}
            category = CLASSES.index(thing.class_name) + 1
            annotations.append(Annotation(len(annotations) + 1, index, category, (x, y, w, h), w * h, 0, score))
        if de and index % 3 == 0:
            box = (2.0, 40.0, 18.0, 16.0)
            annotations.append(Annotation(len(annotations) + 1, index, 1, box, 288.0, 1, {"score": 0.2}))
    write_dataset(folder, split, images, annotations, [Category(n, name) for n, name in enumerate(CLASSES, start=1)])
    return folder


@pytest.fixture(scope="session")
def scene_folders(tmp_path_factory):
    """(generated folder, real folder): 24 'generated' scenes whose sources are the 12 real ones."""
    root = tmp_path_factory.mktemp("scenes")
    real = write_scenes(root / "real", "train", range(12))

    def provenance(index):
        return {"item": index, "source_image_id": (index - 1) % 12 + 1, "strength": round(0.2 + index * 0.6 / 24, 3),
                "prompt": f"a drawing, variant {index}"}  # fmt: skip

    return write_scenes(root / "generated", "annotations", [s % 12 + 100 for s in range(24)], provenance), real


def made_up_results(classes=CLASSES, names=("real", "real+de"), seeds=(0, 1, 2), gain=0.03, spread=0.006):
    """Results with scores from a random generator, marked as such in their settings."""
    rng = np.random.default_rng(4)

    def metrics(level):
        per_class = {name: float(np.clip(level + rng.normal(0, 0.06), 0, 1)) for name in classes}
        score = float(np.clip(level, 0, 1))
        return Metrics(score, min(1, score * 1.6), score * 0.9, score * 0.6, score * 1.1, None, score * 1.2, per_class,
                       {name: min(1, value * 1.5) for name, value in per_class.items()}, {})  # fmt: skip

    def curve():
        steps = range(0, 1000, 10)
        return [(step, 2.2 * np.exp(-step / 180) + 0.22 + float(rng.uniform(0, 0.05))) for step in steps]

    arms, levels = [], {}
    for index, name in enumerate(names):
        levels[name] = 0.41 + gain * (index > 0) * (1 - 0.4 * (index - 1)) + rng.normal(0, spread, len(seeds))
        arms.append(Arm(name, [metrics(level) for level in levels[name]], [curve() for _ in seeds], 150 + 300 * index,
                        0.5 * (index > 0), [61.0] * len(seeds), {"note": f"what arm {index} trains on"}))  # fmt: skip
    differences = {
        name: combine(
            levels[name] - levels[names[0]],
            np.tile(rng.normal(np.mean(levels[name] - levels[names[0]]), 0.006, 500), (len(seeds), 1)),
        )
        for name in names[1:]
    }
    digest = "3f" * 32
    results = build_results(
        arms, differences, baseline=names[0], treatment=names[1], seeds=list(seeds),
        settings={"made_up": "scores of a test", "compare": {"seeds": len(seeds), "controls": ["quarter_share"]}},
        versions={"python": "3.11", "torch": "2.15.0"},
        data={"train": {"images": 150, "sha256": digest}, "test": {"images": 300, "objects": 760, "sha256": digest}},
        generated={"planned": 300, "kept": 284, "dropped": {"no box above the threshold": 15},
                   "failed": {"OutOfMemoryError": 1}, "rejected": {"duplicate": 9, "low score": 14}, "boxes": 640,
                   "ignored": 87, "dropped_boxes": {"outside the image": 4},
                   "objects_per_class": {name: 100 + n for n, name in enumerate(classes)}},
        adapter={"head": "fcos", "thresholds": {name: 0.4 for name in classes}, "ldm": {"id": "world", "sha": digest},
                 "validation": {"images": 97, **dataclasses.asdict(metrics(0.5))}, "training": {"curve": curve()}},
    )  # fmt: skip
    return json.loads(json.dumps(results))  # as read from the file


@pytest.fixture
def make_results():
    return made_up_results


def with_all_parts(results):
    """The optional parts of results.json, made up as well."""
    names, seeds = results["arm_order"], results["seeds"]
    classes = list(results["arms"][names[0]]["per_class"])
    curve = [round(max(0.0, 1 - (k / 80) ** 2), 3) for k in range(101)]
    difference = results["deltas"][results["treatment"]]
    lower = {"mean": -0.01, "ci95": [-0.03, 0.01], "verdict": "cannot tell"}
    entry = {"image_id": 1, "seed": seeds[0], "objects": 3, "found": [1, 3], "change": 2 / 3}
    amounts = enumerate((0, 0.5, 1, 2, 4))
    return results | {
        "precision_recall": {
            "iou": 0.5,
            "arms": {name: {"mean": curve, "per_class": dict.fromkeys(classes, curve)} for name in names},
        },
        "changes": {"iou": 0.5, "images": {"better": 31, "worse": 22, "same": 240, "empty": 7}, "better": [entry],
                    "worse": []},
        "against": {name: {**difference, **lower, "baseline": name} for name in names[2:]},
        "leakage": {"near_copies_of_test_images": 0, "same_file_in_train_and_test": 3},
        "scaling": {
            "points": [{"multiple": m, "images": round(150 * m), "map": [0.4 + 0.01 * n + s / 500 for s in seeds]}
                       for n, m in amounts],
            "fit": None, "stops_paying": 2.5, "note": "Measured with one adapter.",
        },
    }  # fmt: skip


@pytest.fixture
def all_parts():
    return with_all_parts
