"""The gates: every generated image gets its scores, its reasons and one verdict before a person sees it.

| reason | the image |
|---|---|
| unreadable | does not decode fully, or not at the size that annotations.json says |
| bad_box | has a box that is not finite, sticks out, or has a side below a pixel |
| bad_label | has a label of no known class, or a score that is no number from 0 to 1 |
| leakage | repeats a validation or test image |
| memorised | repeats a training image that it was not drawn from |
| too_many_boxes | has far more boxes than any real training image |
| low_score | has boxes that score too little on average |
| label_disagreement | has labels that differ too much from its source's boxes |
| off_prompt | does not show what its prompt says, by an image-text encoder |
| off_domain | does not look like the real images, by the same |
| collapsed | looks like a large part of the other images, as no real one does |
| duplicate | repeats another generated image, or one of the pool that it is to join (`review.pool`) |

`near_source` is a tag: the image nearly repeats the real one that it was drawn from. It rejects nothing.

Scores, each where it is defined: boxes and mean_score (without ignore regions); label_agreement (F1);
held_out_distance, train_distance (bits out of 64 to the nearest real image, mirrored or not) and source_distance;
held_out_similarity and train_similarity (cosine of features); crowding (share of the batch that looks like the image);
text_similarity and domain_similarity (cosines of the image-text encoder, where one is given).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from engine.curation.agreement import MOST, check_agreement
from engine.curation.collapse import Spread, bits_apart, check_collapse, euclidean, measure_spread
from engine.curation.image_text import ImageTextEncoder
from engine.curation.label_gates import check_labels
from engine.curation.perceptual import perceptual_hash
from engine.curation.pool_gate import check_pool
from engine.curation.provenance import origin_image_id, prompt_words, source_image_id
from engine.curation.repeats import (
    HELD_OUT,
    SOURCE,
    check_duplicates,
    check_features,
    check_held_out,
    check_training,
    hash_real,
    standardise,
)
from engine.curation.verdicts import FAIL, Batch, Findings, Judgement
from engine.data.dataset import Dataset, read_dataset, subset
from engine.errors import DatasetError
from engine.generation.prompts import prompt_of
from engine.sections import GenerationSettings, ReviewSettings

Embed = Callable[[Dataset], np.ndarray]


def judge(
    generated: Dataset,
    real: Mapping[str, Dataset],
    settings: ReviewSettings,
    embed: Embed | None = None,
    encoder: ImageTextEncoder | None = None,
    generation: GenerationSettings | None = None,
) -> Judgement:
    """Run every gate over a generated dataset.

    Duplicates are sought among images that no other gate rejects, so that a good image is not lost to a bad one before
    it. A near-duplicate of a validation or test image is rejected whatever else holds: it would leak into training.

    Args:
        generated: split "annotations" of a generated folder.
        real: split name -> dataset of the folder that it was generated from.
        settings: the thresholds.
        embed: gives the features (N, D) of a dataset's images, in its order; None: hashes alone decide.
        encoder: judges whether images show their words and look like the real ones; None: nothing does.
        generation: says with which words the real images would be drawn; of use with an encoder.

    Raises:
        DatasetError: a source image is not in the real training split, or a real image or one of the pool cannot be
            read.
    """
    _check_sources(generated, real)
    findings = {image.id: Findings() for image in generated.images}
    hashes = _hash_generated(generated, findings)
    check_labels(generated, real.get(SOURCE), settings, findings)
    held_out, train = hash_real(real, HELD_OUT), hash_real(real, (SOURCE,))
    if hashes:
        check_held_out(hashes, held_out, settings, findings)
        check_training(generated, hashes, train, settings, findings)
        if settings.pool:
            check_pool(generated, hashes, read_dataset(Path(settings.pool), "annotations"), settings, findings)
    origins = _origins(generated, hashes)
    spreads = {"hash": measure_spread(list(hashes.values()), origins, train.upright(), bits_apart, settings.min_spread)}
    if embed is not None and SOURCE in real and hashes:
        spreads["features"] = _judge_features(generated, real, embed, origins, settings, findings)
    if encoder is not None and SOURCE in real:
        _judge_agreement(generated, real[SOURCE], encoder, generation or GenerationSettings(), settings, findings)
    batch = Batch(None, {}, "review.min_spread is 0: not judged")
    if settings.min_spread:
        known = {name: spread for name, spread in spreads.items() if spread is not None}
        batch = check_collapse(list(hashes), known, settings, findings)
    check_duplicates(generated, hashes, settings, findings)
    verdicts = (findings[image.id].verdict(image.id, settings.accept_borderline) for image in generated.images)
    return Judgement(tuple(verdicts), batch)


def _check_sources(generated: Dataset, real: Mapping[str, Dataset]) -> None:
    known = {image.id for image in real[SOURCE].images} if SOURCE in real else set()
    named = {image.id: source_image_id(image) for image in generated.images}
    lost = [(image, source) for image, source in named.items() if source is not None and source not in known]
    if lost:
        image, source = lost[0]
        folder = next(iter(real.values())).folder if real else "the real dataset"
        raise DatasetError(
            f"{generated.folder / 'annotations.json'}: image {image} was drawn from source image {source}, which is "
            f"not in {SOURCE}.json of {folder} ({len(lost)} such images). Leakage can only be judged against the "
            "dataset that the images were generated from: give that folder."
        )


def _hash_generated(generated: Dataset, findings: Mapping[int, Findings]) -> dict[int, int]:
    """Hashes of the images that decode; the others are marked unreadable."""
    hashes: dict[int, int] = {}
    for image in tqdm(generated.images, desc="gates", unit="image", leave=False, disable=None):
        try:
            hashes[image.id] = perceptual_hash(generated.load(image))
        except (DatasetError, OSError) as error:
            findings[image.id].add("unreadable", FAIL, str(error))
    return hashes


def _origins(generated: Dataset, hashes: Mapping[int, int]) -> list[object]:
    """What each image that decodes was drawn from; of those drawn from nothing each is an origin of its own."""
    drawn_from = {image.id: origin_image_id(image) for image in generated.images}
    return [("itself", i) if drawn_from[i] is None else drawn_from[i] for i in hashes]


def _judge_features(
    generated: Dataset,
    real: Mapping[str, Dataset],
    embed: Embed,
    origins: list[object],
    settings: ReviewSettings,
    findings: Mapping[int, Findings],
) -> Spread | None:
    """Compare the images that decode with real ones by their features; returns the spread of the batch."""
    decoded = _decoded(generated, findings)
    real_rows = {split: embed(real[split]) for split in (SOURCE, *HELD_OUT) if split in real}
    scale = real_rows[SOURCE]
    if not len(scale):
        return None
    standard = {split: standardise(rows, scale) if len(rows) else rows for split, rows in real_rows.items()}
    rows = standardise(embed(decoded), scale)
    by_id = {image.id: row for image, row in zip(decoded.images, rows, strict=True)}
    check_features(generated, by_id, real, standard, settings, findings)
    return measure_spread(rows, origins, standard[SOURCE], euclidean, settings.min_spread)


def _judge_agreement(
    generated: Dataset,
    train: Dataset,
    encoder: ImageTextEncoder,
    generation: GenerationSettings,
    settings: ReviewSettings,
    findings: Mapping[int, Findings],
) -> None:
    """Compare the images that decode with their words and with the real ones."""
    decoded, real = _decoded(generated, findings), _some(train, MOST)
    prompts = {image.id: prompt_words(image) for image in decoded.images}
    texts = list(dict.fromkeys(words for words in prompts.values() if words))
    by_text = dict(zip(texts, encoder.words(texts), strict=True)) if texts else {}
    check_agreement(
        list(prompts),
        encoder.images(decoded),
        {image_id: by_text[words] for image_id, words in prompts.items() if words},
        encoder.images(real),
        encoder.words([prompt_of(real, image, generation) for image in real.images]),
        settings,
        findings,
    )


def _decoded(generated: Dataset, findings: Mapping[int, Findings]) -> Dataset:
    return subset(generated, [i for i, found in findings.items() if "unreadable" not in found.failures])


def _some(dataset: Dataset, most: int) -> Dataset:
    """At most so many of its images, spread evenly over it."""
    step = max(1, -(-len(dataset.images) // most))
    return subset(dataset, [image.id for image in dataset.images[::step]])
