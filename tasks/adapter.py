"""Prefect task: train the Detection-Adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from engine.errors import ModelError
from engine.sections import Settings
from tasks.retry import RETRIED


@dataclass(frozen=True)
class TrainedAdapter:
    """The checkpoint folder, and its AP on held-out real images from 0 to 1 (None without a val split)."""

    folder: str
    map: float | None
    map50: float | None


@task(name="train-adapter", cache_policy=NO_CACHE, **RETRIED)
def train(data: Path, ldm: str, out: Path, settings: Settings) -> TrainedAdapter:
    """Train on `data`, unless `out` holds the adapter of this very data, model and settings."""
    from engine.adapter.train import train_adapter

    data, out = Path(data), Path(out)
    card = find_trained(data, ldm, out, settings) or train_adapter(data, ldm, out, settings)
    scores = card.get("validation", {})
    trained = TrainedAdapter(str(out), scores.get("map"), scores.get("map50"))
    row = {"adapter": trained.folder, "AP": trained.map, "AP50": trained.map50, "images": card["training"]["images"]}
    create_table_artifact([row], "adapter", "AP of the adapter on held-out real images")
    return trained


def find_trained(data: Path, ldm: str, out: Path, settings: Settings) -> dict | None:
    """The card of the adapter in `out`, if training again would only make the same one."""
    from engine.adapter.adapter import read_card
    from engine.adapter.train import asked_for
    from engine.data.dataset import read_dataset
    from engine.ldm.folder import find_ldm, hash_weights

    try:
        card = read_card(out)
    except ModelError:
        return None
    training = card.get("training", {})
    same = (
        training.get("settings") == asked_for(settings)
        and training.get("data_sha256") == read_dataset(data, "train").digest()
        and card["ldm"]["weights_sha256"] == hash_weights(find_ldm(ldm, settings.ldm.revision))
    )
    return card if same else None
