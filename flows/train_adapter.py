"""Flow `train-adapter`: fit the diffusion model to the user's images where a base is given, train the adapter."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from tasks.adapter import TrainedAdapter, train
from tasks.ldm import adapt
from tasks.record import record_version
from tasks.settings import open_settings


@flow(name="train-adapter", persist_result=False)
def train_adapter(
    data: str,
    ldm: str,
    out: str,
    base: str | None = None,
    params: str | None = None,
    overrides: list[str] | None = None,
    record: bool = True,
    version: str | None = None,
) -> TrainedAdapter:
    """Train the Detection-Adapter on real labelled images.

    Args:
        data: dataset folder with train.json, and val.json to measure on.
        ldm: the diffusion model's folder or hub id; with `base`, the folder that the adapted model is written to.
        out: folder of the adapter.
        base: diffusion model to adapt to the images of `data` first.
        params: settings file; params.yaml of the current folder where none is given.
        overrides: strings section.key=value.
        record: commit to DVC where the run did the work of the stages `adapt-ldm` and `train-adapter`.
        version: name of a checkpoint; the recorded adapter is tagged <name>-v<N> in git.
    """
    overrides = overrides or []
    if base is not None:
        base_folder, settings = open_settings(params, overrides, base)
        adapt(Path(data), base_folder, Path(ldm), settings)
        if record:
            record_version("adapt-ldm", {"data": data, "ldm": base, "out": ldm}, settings)
    model, settings = open_settings(params, overrides, ldm)
    trained = train(Path(data), model, Path(out), settings)
    if record or version:
        record_version("train-adapter", {"data": data, "ldm": ldm, "out": out}, settings, version)
    return trained
