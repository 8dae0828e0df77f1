"""`de train-detector`: one detector to keep, on real images or on real and generated ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from engine.config import digest
from engine.data.dataset import read_dataset, splits_of
from engine.detection.build import BuiltDetector
from engine.detection.examples import ExampleSheet
from engine.detection.fitting import fit_detector
from engine.detection.journal import Journal
from engine.detection.prediction import predict
from engine.detection.processes import is_main_process, take_own_gpu, wait_for_all
from engine.detection.samples import Source
from engine.detection.state import STATE, remove_state
from engine.detection.trained import CARD, save_detector
from engine.detection.zoo.weights import weights_sha256
from engine.errors import DatasetError
from engine.evaluation.coco_map import evaluate
from engine.evaluation.compare import check_classes, check_objects, read_generated
from engine.evaluation.outcome import versions
from engine.evaluation.trainings import source_record
from engine.ldm.device import choose_device
from engine.sections import Settings


def train_detector(real: Path, out: Path, settings: Settings, generated: Path | None = None, seed: int = 0) -> dict:
    """Train on `real`/train.json, and on the accepted images of a generated dataset as an arm of a comparison does
    (`compare.generated_share` of each batch), measure on val.json, write the folder `out`. Returns its card.

    The test split is not read. A training that was stopped goes on from its last state in `out`; curves and examples
    are written there as it goes.

    Raises:
        DatasetError: `out` holds a detector already, no box to learn from, splits of different classes, or a generated
            dataset that cannot be used.
        ConfigError, ModelError: the detector cannot be built. RunConflict: `out` holds the state of another training.
        RunFailed: the loss is not finite, or the memory or disk is not enough.
    """
    if (out / CARD).is_file():
        raise DatasetError(f"{out} holds a trained detector already. Give a new folder, or remove it.")
    options = settings.detector
    train = read_dataset(real, "train")
    check_objects(train, "there is nothing to learn from")
    val = read_dataset(real, "val") if "val" in splits_of(real) else None
    if val is not None:
        check_classes({"train.json": train, "val.json": val})
    sources = [Source(train)]
    if generated is not None:
        share = settings.compare.generated_share
        sources = [Source(train, 1 - share), Source(read_generated(generated, train), share)]
    take_own_gpu()
    device = choose_device(settings.ldm.device)
    trained_on = [source_record(source, source.dataset.digest()) for source in sources]
    decides = [{**dataclasses.asdict(options), "save_every": 0}, weights_sha256(options)]
    decides += [[s["sha256"] for s in trained_on], [source.recipe() for source in sources]]
    state = out / STATE

    def journal(built: BuiltDetector) -> Journal:
        return Journal(out, None if val is None else ExampleSheet(val, built.frame, built.module.detect, device))

    built, record = fit_detector(
        options, sources, seed, "detector", device, state=state, digest=digest(decides), journal=journal
    )
    measured = {}
    if val is not None:
        scores = evaluate(val, predict(built.module.detect, val, built.frame, device=device))
        measured["validation"] = {"images": len(val.images), **dataclasses.asdict(scores)}
    card = {"seed": seed, "trained_on": trained_on, "curve": record.curve, "seconds": record.seconds, **measured}
    if is_main_process():
        card = save_detector(built.module, options, train.categories, out, versions=versions(), **card)
        remove_state(state)
    wait_for_all()
    return card
