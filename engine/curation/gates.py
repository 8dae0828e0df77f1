"""The gates: every generated image gets its scores, its reasons and one verdict before a person sees it.

Rejecting reasons: `unreadable`, `leakage`, `low_score`, `duplicate`. A tag that does not reject: `near_source`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from engine.config import ReviewSettings
from engine.curation.perceptual import find_duplicates, nearest, perceptual_hash
from engine.data.dataset import Dataset, ImageRecord
from engine.errors import DatasetError

log = logging.getLogger(__name__)

REJECTING = ("unreadable", "leakage", "low_score", "duplicate")
TAGS = (*REJECTING, "near_source")
FINAL = ("unreadable", "leakage")  # a person cannot overrule these
HELD_OUT = ("val", "test")
SOURCE = "train"


@dataclass(frozen=True)
class Verdict:
    """The gates' word on one generated image.

    Attributes:
        image_id: id in annotations.json.
        accepted: no rejecting reason was found.
        reasons: names out of TAGS, in its order; an accepted image may carry a tag.
        scores: mean_score (of the boxes that are not ignore regions), boxes, held_out_distance and source_distance
            (bits out of 64); a score that is undefined for the image is absent.
        note: the reasons in words, with the files and figures they rest on.
    """

    image_id: int
    accepted: bool
    reasons: tuple[str, ...] = ()
    scores: dict[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass
class _Findings:
    """Reasons and scores of one image while the gates run."""

    reasons: dict[str, str] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def rejected(self) -> bool:
        return any(reason in REJECTING for reason in self.reasons)


def judge(generated: Dataset, real: Mapping[str, Dataset], settings: ReviewSettings) -> list[Verdict]:
    """Run every gate over a generated dataset.

    Duplicates are sought among images that no other gate rejects, so that a good image is not lost to a bad one before
    it. A near-duplicate of a validation or test image is rejected whatever else holds: it would leak into training.

    Args:
        generated: split "annotations" of a generated folder.
        real: split name -> dataset of the folder that it was generated from.
        settings: the thresholds.

    Returns:
        one verdict per image, in the dataset's order.

    Raises:
        DatasetError: a source image is not in the real training split, or a real image cannot be read.
    """
    _check_sources(generated, real)
    findings = {image.id: _Findings() for image in generated.images}
    hashes = _hash_generated(generated, findings)
    _gate_scores(generated, settings.min_mean_score, findings)
    _gate_held_out(generated, real, hashes, settings.duplicate_distance, findings)
    _tag_near_source(generated, real, hashes, settings.duplicate_distance, findings)
    _gate_duplicates(generated, hashes, settings.duplicate_distance, findings)
    return [_verdict(image.id, findings[image.id]) for image in generated.images]


def source_image_id(image: ImageRecord) -> int | None:
    """Id of the real image that a generated one was drawn from; None where it records none."""
    provenance = image.extra.get("de")
    return provenance.get("source_image_id") if isinstance(provenance, dict) else None


def box_scores(generated: Dataset, image_id: int) -> dict[str, float]:
    """Number of boxes, and their mean score where any has one; ignore regions (iscrowd) do not count."""
    labels = [annotation for annotation in generated.annotations_of(image_id) if not annotation.iscrowd]
    scores = [float(annotation.extra["score"]) for annotation in labels if "score" in annotation.extra]
    found = {"boxes": float(len(labels))}
    if scores:
        found["mean_score"] = sum(scores) / len(scores)
    return found


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


def _hash_generated(generated: Dataset, findings: dict[int, _Findings]) -> dict[int, int]:
    """Hashes of the images that decode; the others are marked unreadable."""
    hashes: dict[int, int] = {}
    for image in tqdm(generated.images, desc="gates", unit="image", leave=False, disable=None):
        try:
            hashes[image.id] = perceptual_hash(generated.load(image))
        except (DatasetError, OSError) as error:
            findings[image.id].reasons["unreadable"] = str(error)
    return hashes


def _gate_scores(generated: Dataset, minimum: float, findings: dict[int, _Findings]) -> None:
    for image in generated.images:
        found = findings[image.id]
        found.scores.update(box_scores(generated, image.id))
        mean = found.scores.get("mean_score")
        if mean is not None and mean < minimum:
            found.reasons["low_score"] = f"mean box score {mean:.3f} is below {minimum:.3f}"


def _gate_held_out(
    generated: Dataset, real: Mapping[str, Dataset], hashes: dict[int, int], distance: int, findings: dict
) -> None:
    held_out = [(split, image) for split in HELD_OUT if split in real for image in real[split].images]
    if not held_out or not hashes:
        log.info("No validation or test images: the leakage gate has nothing to compare with.")
        return
    references = _hash_real([(real[split], image) for split, image in held_out], "held-out images")
    for image_id, (bits, index) in zip(hashes, nearest(list(hashes.values()), references), strict=True):
        split, image = held_out[index]
        findings[image_id].scores["held_out_distance"] = float(bits)
        if bits <= distance:
            findings[image_id].reasons["leakage"] = f"repeats {split} image {image.file_name} ({bits} bits differ)"


def _tag_near_source(
    generated: Dataset, real: Mapping[str, Dataset], hashes: dict[int, int], distance: int, findings: dict
) -> None:
    sources = {image.id: source_image_id(image) for image in generated.images if image.id in hashes}
    wanted = {source for source in sources.values() if source is not None}
    if not wanted:
        return
    images = [image for image in real[SOURCE].images if image.id in wanted]
    values = _hash_real([(real[SOURCE], image) for image in images], "source images")
    by_id = {image.id: value for image, value in zip(images, values, strict=True)}
    for image_id, source in sources.items():
        if source is None:
            continue
        bits = (hashes[image_id] ^ by_id[source]).bit_count()
        findings[image_id].scores["source_distance"] = float(bits)
        if bits <= distance:
            findings[image_id].reasons["near_source"] = f"nearly repeats its source image {source} ({bits} bits differ)"


def _gate_duplicates(generated: Dataset, hashes: dict[int, int], distance: int, findings: dict) -> None:
    candidates = [i.id for i in generated.images if i.id in hashes and not findings[i.id].rejected]
    repeated = find_duplicates([hashes[image_id] for image_id in candidates], distance)
    for index, original in repeated.items():
        findings[candidates[index]].reasons["duplicate"] = f"repeats generated image {candidates[original]}"


def _hash_real(images: Sequence[tuple[Dataset, ImageRecord]], what: str) -> list[int]:
    return [
        perceptual_hash(dataset.load(image))
        for dataset, image in tqdm(images, desc=what, unit="image", leave=False, disable=None)
    ]


def _verdict(image_id: int, found: _Findings) -> Verdict:
    reasons = tuple(name for name in TAGS if name in found.reasons)
    note = "; ".join(f"{name}: {found.reasons[name]}" for name in reasons)
    return Verdict(image_id, not found.rejected, reasons, dict(found.scores), note)
