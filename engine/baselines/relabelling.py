"""Other ways to label the very images that the engine drew: by a detector, and by cross-attention."""

from __future__ import annotations

from torch import Tensor

from engine.baselines.attention_threshold import choose_threshold
from engine.baselines.cross_attention import CrossAttentionSettings, label
from engine.baselines.request import BaselineRequest, Outcome
from engine.curation.training_labels import accepted_images
from engine.data.dataset import read_dataset
from engine.data.pixels import Frame
from engine.detection.fitting import fit_detector
from engine.detection.prediction import predict
from engine.detection.samples import Source
from engine.detection.targets import Detections
from engine.errors import DatasetError
from engine.generation.labels import LabelRules
from engine.generation.relabel import write_relabelled
from engine.ldm.device import choose_device
from engine.ldm.diffusion import load_ldm

_BATCH = 16


def by_detector(request: BaselineRequest) -> Outcome:
    """Generate, then detect: the images of a generated dataset, labelled by the detector of the settings, trained on
    the same labels (train.json of `request.data`) as the adapter was. The fixed thresholds of generation decide.

    Raises:
        DatasetError: a dataset cannot be used, or no box was found on any image.
    """
    settings, seed = request.settings, request.seed
    train, pictures = read_dataset(request.data, "train"), accepted_images(request.generated)
    options, device = settings.detector, choose_device(settings.ldm.device)
    built, _ = fit_detector(options, [Source(train)], seed, "the labelling detector", device)
    found = predict(built.module.detect, pictures, built.frame, device=device)
    generation = settings.generation
    rules = LabelRules(generation.score_threshold, generation.ignore_threshold, generation.suppress_iou)
    return Outcome(**write_relabelled(request.out, pictures, found, rules, generation.keep_negatives))


def by_attention(request: BaselineRequest) -> Outcome:
    """The images of a generated dataset, labelled by the cross-attention to the words of their prompts (see
    `engine.baselines.cross_attention`). Every region is a label: its score is no probability. With `request.data` the
    attention's threshold is the best one on its val.json (see `choose_threshold`).

    Raises:
        DatasetError: an image was drawn without words, no box was found on any, or no threshold can be chosen.
        ModelError: see `label`.
    """
    settings, options = request.settings, request.ldm
    pictures = accepted_images(request.generated)
    prompts = {image.id: image.extra.get("de", {}).get("prompt", "") for image in pictures.images}
    if not all(prompts.values()):
        raise DatasetError(
            f"{request.generated}: images were drawn without words, and attention is read between image and words."
        )
    model = load_ldm(options.id, options.revision, options.dtype, options.device)
    frame, classes = Frame(options.resolution, model.alignment), [c.name for c in pictures.categories]
    reading = CrossAttentionSettings()
    chosen: dict = {"threshold": reading.threshold}
    if request.data is not None:
        val = read_dataset(request.data, "val")
        if val.categories != pictures.categories:
            raise DatasetError(
                f"{request.data / 'val.json'} lists other classes than {request.generated}. Give the dataset that was "
                "generated from."
            )
        reading, chosen = choose_threshold(model, val, frame, reading, settings.generation, _BATCH)

    def read(pixels: Tensor, texts: list[str]) -> list[Detections]:
        return label(model, pixels, texts, classes, reading)

    found = predict(read, pictures, frame, _BATCH, model.device, lambda image: prompts[image.id])
    every = LabelRules(0.0, 0.0, settings.generation.suppress_iou)
    written = write_relabelled(request.out, pictures, found, every, settings.generation.keep_negatives)
    return Outcome(**written, chosen=chosen)
