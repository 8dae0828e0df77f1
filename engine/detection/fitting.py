"""From a detector's settings to a trained detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from engine.detection.build import BuiltDetector, build_detector
from engine.detection.journal import Journal
from engine.detection.samples import BatchSource, Source
from engine.detection.schedule import OptimisationSettings
from engine.detection.training import TrainingRecord, fit
from engine.sections import DetectorSettings


def fit_detector(
    options: DetectorSettings,
    sources: Sequence[Source],
    seed: int,
    name: str,
    device: torch.device,
    steps_factor: float = 1.0,
    state: Path | None = None,
    digest: str = "",
    journal: Callable[[BuiltDetector], Journal] | None = None,
) -> tuple[BuiltDetector, TrainingRecord]:
    """Build the detector of the settings and train it on the sources, for `steps_factor` times the settings' steps.

    Args:
        name, state, digest: see `fit`. journal: makes what `fit` writes as it goes.

    Returns:
        The detector on `device`, ready to predict, and how its training went.

    Raises:
        ConfigError, ModelError: as `build_detector`. ConfigError, DatasetError: as `BatchSource`.
        RunFailed, RunConflict: as `fit`.
    """
    torch.manual_seed(seed)
    built = build_detector(options, len(sources[0].dataset.categories))
    built.module.to(device).train()
    optimisation = OptimisationSettings.of(options, steps_factor)
    batches = BatchSource.of(options, sources, built.frame, seed, optimisation.steps)
    written = None if journal is None else journal(built)
    record = fit(built.module, batches, optimisation, name, device, state, digest, written)
    built.module.eval()
    return built, record
