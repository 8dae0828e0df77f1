"""Gates that compare pictures: does a generated image repeat a held-out, a training or another generated one?

Two pictures are compared by their perceptual hashes (bits of 64 that differ, one of them mirrored or not) and, where a
diffusion model's features are given, by their cosine.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import ImageOps
from tqdm import tqdm

from engine.curation.perceptual import find_duplicates, nearest, perceptual_hash
from engine.curation.provenance import origin_image_id
from engine.curation.verdicts import BORDERLINE, FAIL, NEAR_SOURCE, PASS, Findings, grade
from engine.data.dataset import Dataset, ImageRecord
from engine.sections import ReviewSettings

log = logging.getLogger(__name__)

HELD_OUT = ("val", "test")
SOURCE = "train"
_BLOCK = 256  # rows of the similarity table held in memory at once


@dataclass(frozen=True)
class RealHashes:
    """The real images of some splits, (split, image), and two hashes for each: of the picture and of its mirror
    image, in that order."""

    images: tuple[tuple[str, ImageRecord], ...]
    hashes: tuple[int, ...]

    def nearest(self, queries: Sequence[int]) -> list[tuple[int, str, ImageRecord]]:
        """For each hash the differing bits, the split and the image of the closest real picture, mirrored or not."""
        return [(bits, *self.images[place // 2]) for bits, place in nearest(queries, self.hashes)]

    def upright(self) -> tuple[int, ...]:
        """One hash an image, of the picture as it is."""
        return self.hashes[::2]


def hash_real(real: Mapping[str, Dataset], splits: Sequence[str]) -> RealHashes:
    """Hash every image of the splits that are there.

    Raises:
        DatasetError: an image cannot be read.
    """
    images = tuple((split, image) for split in splits if split in real for image in real[split].images)
    hashes: list[int] = []
    for split, image in tqdm(images, desc="real images", unit="image", leave=False, disable=None):
        picture = real[split].load(image)
        hashes += [perceptual_hash(picture), perceptual_hash(ImageOps.mirror(picture))]
    return RealHashes(images, tuple(hashes))


def check_held_out(
    hashes: Mapping[int, int], held_out: RealHashes, settings: ReviewSettings, findings: Mapping[int, Findings]
) -> None:
    """Leakage: add the score held_out_distance and the reason leakage. hashes: generated image id -> hash."""
    if not held_out.images:
        log.info("No validation or test images: the leakage gate has nothing to compare with.")
        return
    for image_id, (bits, split, image) in zip(hashes, held_out.nearest(list(hashes.values())), strict=True):
        findings[image_id].scores["held_out_distance"] = float(bits)
        words = f"repeats {split} image {image.file_name} ({bits} bits differ)"
        findings[image_id].add("leakage", _grade_bits(bits, settings), words)


def check_training(
    generated: Dataset,
    hashes: Mapping[int, int],
    train: RealHashes,
    settings: ReviewSettings,
    findings: Mapping[int, Findings],
) -> None:
    """Add the scores source_distance and train_distance, the tag near_source and the reason memorised.

    An image may be near the one that it was drawn from; one that repeats another training image was learnt by heart.
    """
    if not train.images:
        return
    upright = {image.id: value for (_, image), value in zip(train.images, train.upright(), strict=True)}
    origins = {image.id: origin_image_id(image) for image in generated.images}
    for image_id, (bits, _, image) in zip(hashes, train.nearest(list(hashes.values())), strict=True):
        found, origin = findings[image_id], origins[image_id]
        found.scores["train_distance"] = float(bits)
        near_source = False
        if origin is not None:
            from_source = (hashes[image_id] ^ upright[origin]).bit_count()
            found.scores["source_distance"] = float(from_source)
            near_source = _grade_bits(from_source, settings) != PASS
            if _grade_bits(from_source, settings) == FAIL:
                words = f"nearly repeats its source image {origin} ({from_source} bits differ)"
                found.tags[NEAR_SOURCE] = words
        if image.id != origin and not near_source:  # sources may resemble each other
            words = f"repeats training image {image.file_name} ({bits} bits differ), which it was not drawn from"
            found.add("memorised", _grade_bits(bits, settings), words)


def check_duplicates(
    generated: Dataset, hashes: Mapping[int, int], settings: ReviewSettings, findings: Mapping[int, Findings]
) -> None:
    """Add the reason duplicate. Sought among images that no other gate rejects, so that a good image is not lost to a
    bad one before it: this gate comes last. Variants of one source are alike by nature, and never borderline."""
    origins = {image.id: origin_image_id(image) for image in generated.images}
    candidates = [i for i in origins if i in hashes and not findings[i].failures]
    for outcome, distance in (
        (FAIL, settings.duplicate_distance),
        (BORDERLINE, settings.duplicate_distance + settings.borderline_bits),
    ):
        repeated = find_duplicates([hashes[image_id] for image_id in candidates], distance)
        for index, original in repeated.items():
            first, second = candidates[original], candidates[index]
            variants = origins[first] is not None and origins[first] == origins[second]
            if outcome == FAIL or not variants:
                bits = (hashes[first] ^ hashes[second]).bit_count()
                findings[second].add("duplicate", outcome, f"repeats generated image {first} ({bits} bits differ)")
        candidates = [image_id for place, image_id in enumerate(candidates) if place not in repeated]


def check_features(
    generated: Dataset,
    rows: Mapping[int, np.ndarray],
    real: Mapping[str, Dataset],
    real_rows: Mapping[str, np.ndarray],
    settings: ReviewSettings,
    findings: Mapping[int, Findings],
) -> None:
    """The same by features: add the scores held_out_similarity and train_similarity, the reasons leakage and memorised.

    Args:
        rows: generated image id -> (D,) features in the scale of the real images (`standardise`).
        real_rows: split -> (N, D), in the order of its images.
    """
    origins = {image.id: origin_image_id(image) for image in generated.images}
    for split in (*HELD_OUT, SOURCE):
        if split not in real or not len(real_rows[split]) or not rows:
            continue
        name = "train_similarity" if split == SOURCE else "held_out_similarity"
        places = {image.id: place for place, image in enumerate(real[split].images)}
        for image_id, cosines in zip(rows, _cosines(np.stack(list(rows.values())), real_rows[split]), strict=True):
            found, place = findings[image_id], int(cosines.argmax())
            value, image = float(cosines[place]), real[split].images[place]
            found.scores[name] = max(value, found.scores.get(name, -1.0))
            outcome = _grade_cosine(value, settings)
            if split != SOURCE:
                found.add(
                    "leakage", outcome, f"repeats {split} image {image.file_name} (features alike to {value:.3f})"
                )
                continue
            source = places.get(origins[image_id])
            near_source = source is not None and _grade_cosine(float(cosines[source]), settings) != PASS
            if not near_source:
                words = f"repeats training image {image.file_name} (features alike to {value:.3f})"
                found.add("memorised", outcome, words)


def standardise(rows: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Features (N, D) in units of how much each of them differs among the real images (M, D), around their mean.

    The real images alone set the scale: a collapsed batch would set its own and look as varied as any. Features that
    hardly vary count as if they varied a tenth of the median, or noise in them would drown the others.
    """
    deviation = real.std(axis=0)
    return (rows - real.mean(axis=0)) / np.maximum(deviation, 0.1 * np.median(deviation) + 1e-6)


def _cosines(rows: np.ndarray, references: np.ndarray):
    """Yield for each row (D,) its cosines (M,) with the references (M, D)."""
    units = _units(references)
    for start in range(0, len(rows), _BLOCK):
        yield from _units(rows[start : start + _BLOCK]) @ units.T


def _units(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _grade_bits(bits: int, settings: ReviewSettings) -> str:
    """Bits are whole numbers, and duplicate_distance itself is too near."""
    return grade(bits, settings.duplicate_distance + 1, settings.borderline_bits)


def _grade_cosine(cosine: float, settings: ReviewSettings) -> str:
    return grade(-cosine, -settings.feature_similarity, settings.borderline_margin)
