"""The adapter's labels on real pictures that have none: what semi-supervised training learns from, nothing drawn."""

from __future__ import annotations

from pathlib import Path

from engine.adapter.adapter import frame_of
from engine.adapter.train import text_of
from engine.data.dataset import read_dataset
from engine.data.sources import UNLABELLED, read_sources
from engine.detection.prediction import predict
from engine.generation.draw import load_drawer
from engine.generation.labels import LabelRules
from engine.generation.relabel import refuse_existing, write_relabelled
from engine.sections import Settings


def label_pictures(data: Path, ldm: str | Path, adapter: Path, out: Path, settings: Settings) -> dict[str, int]:
    """Label unlabelled.json of a dataset folder with an adapter, by the same thresholds as generated images, and write
    a dataset folder for `de compare --arm`. Returns what `write_relabelled` does.

    Raises:
        DatasetError: nothing is unlabelled, or `out` is there already. ModelError: the adapter does not fit.
    """
    refuse_existing(out)
    read_sources(data, unlabelled=True)  # refuses what cannot be a source
    pictures = read_dataset(data, UNLABELLED)
    drawer = load_drawer(data, ldm, adapter, settings)
    frame = frame_of(drawer.ldm, drawer.adapter.card["resolution"])
    found = predict(
        drawer.adapter.on(drawer.ldm).detect,
        pictures,
        frame,
        device=drawer.ldm.device,
        text_of=text_of(pictures, settings),
    )
    rules = LabelRules.of(vars(settings.generation), drawer.identity["adapter"])
    return write_relabelled(out, pictures, found, rules, settings.generation.keep_negatives)
