"""Other ways to label the very images that the engine drew: by a detector, and by cross-attention."""

from __future__ import annotations

from pathlib import Path

import torch
from tqdm import tqdm

from engine.baselines.cross_attention import CrossAttentionSettings, label
from engine.config import Settings
from engine.data.dataset import read_dataset
from engine.data.pixels import Frame, read_pixels, to_model
from engine.detection.build import build_detector
from engine.detection.prediction import predict
from engine.detection.samples import BatchSource, Source
from engine.detection.schedule import OptimisationSettings
from engine.detection.training import fit
from engine.errors import DatasetError
from engine.generation.labels import LabelRules
from engine.generation.relabel import refuse_existing, write_relabelled
from engine.ldm.device import choose_device
from engine.ldm.diffusion import load_ldm

_BATCH = 16


def by_detector(data: Path, generated: Path, out: Path, settings: Settings, seed: int = 0) -> dict[str, int]:
    """Generate, then detect: the images of a generated dataset, labelled by the detector of the settings, trained on
    the same labels (train.json of `data`) as the adapter was. Thresholds as in generation.

    Returns what `write_relabelled` does. Raises DatasetError: `out` is there already, or a dataset cannot be used.
    """
    refuse_existing(out)
    train, pictures = read_dataset(data, "train"), read_dataset(generated, "annotations")
    options, device = settings.detector, choose_device(settings.ldm.device)
    torch.manual_seed(seed)
    built = build_detector(options, len(train.categories))
    built.module.to(device).train()
    optimisation = OptimisationSettings.of(options)
    batches = BatchSource.of(options, [Source(train)], built.frame, seed, optimisation.steps)
    fit(built.module, batches, optimisation, "the labelling detector", device)
    built.module.eval()
    found = predict(built.module.detect, pictures, built.frame, device=device)
    return write_relabelled(out, pictures, found, _rules(settings), settings.generation.keep_negatives)


def by_attention(generated: Path, out: Path, settings: Settings, ldm: str | Path) -> dict[str, int]:
    """The images of a generated dataset, labelled by the cross-attention to the words of their prompts (see
    `engine.baselines.cross_attention`). Every region is a label: its score is no probability.

    Returns what `write_relabelled` does. Raises DatasetError: `out` is there, or an image was drawn without words.
    """
    refuse_existing(out)
    pictures = read_dataset(generated, "annotations")
    prompts = {image.id: image.extra.get("de", {}).get("prompt", "") for image in pictures.images}
    if not all(prompts.values()):
        raise DatasetError(
            f"{generated}: images were drawn without words, and attention is read between image and words."
        )
    model = load_ldm(ldm, settings.ldm.revision, settings.ldm.dtype, settings.ldm.device)
    frame, classes = Frame(settings.ldm.resolution, model.alignment), [c.name for c in pictures.categories]
    found: list[dict] = []
    by_size: dict[tuple[int, int], list] = {}
    for image in pictures.images:
        by_size.setdefault(frame.size_of(image.width, image.height), []).append(image)
    with tqdm(total=len(pictures.images), desc="attention", mininterval=2) as bar:
        for size, images in by_size.items():
            for start in range(0, len(images), _BATCH):
                some = images[start : start + _BATCH]
                pixels = to_model(torch.stack([read_pixels(pictures, image, size) for image in some]))
                words = [prompts[image.id] for image in some]
                labelled = label(model, pixels.to(model.device), words, classes, CrossAttentionSettings())
                for image, detections in zip(some, labelled, strict=True):
                    scale = torch.tensor([image.width / size[0], image.height / size[1]]).repeat(2)
                    for box, index in zip(detections.boxes_xyxy * scale, detections.labels.tolist(), strict=True):
                        x0, y0, x1, y1 = box.tolist()
                        category = pictures.categories[index].id
                        bbox = [x0, y0, x1 - x0, y1 - y0]
                        found.append({"image_id": image.id, "category_id": category, "bbox": bbox, "score": 1.0})
                bar.update(len(some))
    return write_relabelled(out, pictures, found, _rules(settings), settings.generation.keep_negatives)


def _rules(settings: Settings) -> LabelRules:
    generation = settings.generation
    return LabelRules(generation.score_threshold, generation.ignore_threshold, generation.suppress_iou)
