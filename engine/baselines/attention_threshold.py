"""From which value of the attention on a pixel belongs to an object: chosen on labelled validation images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from engine.adapter.thresholds import without_suppressed
from engine.baselines.cross_attention import CrossAttentionSettings, boxes_of, class_maps
from engine.data.dataset import Dataset, ImageRecord
from engine.data.pixels import Frame, batches_of
from engine.detection.prediction import as_results
from engine.errors import DatasetError
from engine.evaluation.f1 import IOU, box_scores
from engine.generation.prompts import classes_of, template
from engine.ldm.diffusion import LatentDiffusion
from engine.sections import GenerationSettings

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def choose_threshold(
    ldm: LatentDiffusion,
    val: Dataset,
    frame: Frame,
    settings: CrossAttentionSettings,
    generation: GenerationSettings,
    batch_size: int,
) -> tuple[CrossAttentionSettings, dict]:
    """The settings with the threshold of THRESHOLDS whose boxes have the best F1 on validation images.

    Each image is read with the words of its own classes, in the paper's template: what it says of classes that are not
    there is never asked for, so the F1 is that of images which hold what their prompt names.

    Returns:
        The settings, and json-ready what was tried: {threshold, f1, iou, images, tried: {threshold: f1}}.

    Raises:
        DatasetError: the images hold no object. ModelError: see `label`.
    """
    if all(annotation.iscrowd for annotation in val.annotations):
        raise DatasetError(
            f"{val.folder / f'{val.split}.json'} holds no object, so no threshold can be chosen on it. Give another "
            "--data, or leave it out."
        )

    def words(record: ImageRecord) -> str:
        return template(generation.domain, classes_of(val, record.id))

    results = results_by_threshold(ldm, val, frame, settings, words, batch_size)
    # As generation writes labels: of boxes of several classes on one object the best stays.
    kept = {at: without_suppressed(found, generation.suppress_iou) for at, found in results.items()}
    tried = {at: box_scores(val, found)["f1"] for at, found in kept.items()}
    best = max(tried, key=tried.get)
    chosen = {"threshold": best, "f1": tried[best], "iou": IOU, "images": len(val.images)}
    chosen["tried"] = {f"{at:g}": f1 for at, f1 in tried.items()}
    return dataclasses.replace(settings, threshold=best), chosen


@torch.no_grad()
def results_by_threshold(
    ldm: LatentDiffusion,
    data: Dataset,
    frame: Frame,
    settings: CrossAttentionSettings,
    text_of: Callable[[ImageRecord], str],
    batch_size: int,
) -> dict[float, list[dict]]:
    """For each of THRESHOLDS the COCO results of the labeller on a dataset; every image is read once for all of them.

    Args:
        text_of: the prompt of an image.
    """
    classes, ids = [c.name for c in data.categories], [c.id for c in data.categories]
    results: dict[float, list[dict]] = {threshold: [] for threshold in THRESHOLDS}
    for records, pixels in batches_of(data, frame, batch_size):
        size = (pixels.shape[-1], pixels.shape[-2])
        maps = class_maps(ldm, pixels.to(ldm.device), [text_of(record) for record in records], classes, settings)
        for record, named in zip(records, maps, strict=True):
            for threshold, found in results.items():
                found += as_results(record, size, boxes_of(named, threshold, settings.min_side), ids)
    return results
