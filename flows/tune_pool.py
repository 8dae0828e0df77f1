"""What a tuning is of, and the pool of images that its candidates are parts of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.data.dataset import Dataset, read_dataset
from engine.errors import DatasetError
from engine.sections import Settings
from tasks.settings import ldm_settings

FLOOR = 0.1  # the lowest score of a box of the pool
RATIOS = (0.1, 0.8)  # encode ratios of the pool
GUIDANCE_MIN = 1.0
PRECISIONS = (0.6, 0.75, 0.9)  # of labels, on validation images; each gives a threshold to try


@dataclass(frozen=True)
class TuneRequest:
    """What is tuned: an adapter's generation for the detector of the settings, within so many minutes."""

    data: Path
    ldm: str
    adapter: Path
    out: Path
    settings: Settings
    images: int
    minutes: float
    seed: int


def draw_pool(request: TuneRequest, tell: Callable[[str], None]) -> Dataset:
    """Images over wide ranges of encode ratio and guidance, with boxes of any score; what the gates reject is out."""
    from engine.curation.training_labels import training_labels
    from engine.generation.devices import usual_workers
    from engine.generation.run import generate
    from tasks.review import review

    out, settings = request.out / "pool", pool_settings(request.settings)
    tell(f"draw {request.images} images at encode ratios {RATIOS[0]} to {RATIOS[1]}")
    workers = usual_workers(settings)
    generate(request.data, request.ldm, request.adapter, out, request.images, request.seed, settings, workers)
    review(out, request.data, settings, fiftyone="off", ldm=ldm_settings(request.ldm, settings))
    pool = training_labels(out, read_dataset(out, "annotations"))
    if not pool.images:
        raise DatasetError(f"The gates rejected every image of the pool: {out / 'gates.json'} says why of each.")
    return pool


def pool_settings(settings: Settings) -> Settings:
    """The settings, with the wide ranges of the pool, and without the gates that judge its labels: with boxes of any
    score there are many more of them than any candidate will keep."""
    generation = dataclasses.replace(
        settings.generation,
        strength_min=RATIOS[0],
        strength_max=RATIOS[1],
        guidance_min=GUIDANCE_MIN,
        guidance_max=max(2.0, 1.5 * settings.generation.guidance_max),
        thresholds="fixed",
        score_threshold=FLOOR,
        ignore_threshold=FLOOR,
        text_to_image=0.0,
        keep_negatives=False,
    )
    review = dataclasses.replace(settings.review, box_count_factor=0.0, min_mean_score=0.0, min_label_agreement=0.0)
    return dataclasses.replace(settings, generation=generation, review=review)


def score_thresholds(request: TuneRequest, val: Dataset) -> dict[str, float]:
    """Score thresholds by the precision that they reach on validation images; the settings' own where none does."""
    from engine.adapter.quality import predict_sources
    from engine.adapter.thresholds import choose_thresholds
    from engine.generation.draw import load_drawer

    settings = pool_settings(request.settings)
    settings = dataclasses.replace(settings, generation=dataclasses.replace(settings.generation, min_adapter_map=0.0))
    drawer = load_drawer(request.data, request.ldm, request.adapter, settings, "val")
    detections = predict_sources(drawer, settings)
    found = {}
    for precision in PRECISIONS:
        score = choose_thresholds(val, detections, precision, settings.generation.suppress_iou)["pooled"]["score"]
        threshold = None if score is None else max(2 * FLOOR, round(score, 2))
        if threshold is not None and threshold not in found.values():
            found[f"precision {precision:g}"] = threshold
    return found or {"settings": request.settings.generation.score_threshold}
