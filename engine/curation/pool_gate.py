"""Gate: does a generated image repeat one of the dataset that it is to join (`review.pool`)?"""

from __future__ import annotations

from collections.abc import Mapping

from tqdm import tqdm

from engine.curation.perceptual import nearest, perceptual_hash
from engine.curation.provenance import origin_image_id
from engine.curation.verdicts import FAIL, Findings, grade
from engine.data.dataset import Dataset
from engine.sections import ReviewSettings


def check_pool(
    generated: Dataset,
    hashes: Mapping[int, int],
    pool: Dataset,
    settings: ReviewSettings,
    findings: Mapping[int, Findings],
) -> None:
    """Add the reason duplicate to images that repeat one of `pool`, by the measure of `repeats.check_duplicates`.

    Args:
        hashes: generated image id -> hash; not empty.

    Raises:
        DatasetError: an image of the pool cannot be read.
    """
    if not pool.images:
        return
    images = tqdm(pool.images, desc="pool", unit="image", leave=False, disable=None)
    known = [perceptual_hash(pool.load(image)) for image in images]
    origins = {image.id: origin_image_id(image) for image in generated.images}
    for image_id, (bits, place) in zip(hashes, nearest(list(hashes.values()), known), strict=True):
        image = pool.images[place]
        outcome = grade(bits, settings.duplicate_distance + 1, settings.borderline_bits)
        variants = origins[image_id] is not None and origins[image_id] == origin_image_id(image)
        if outcome == FAIL or not variants:  # variants of one source are alike by nature
            words = f"repeats image {image.file_name} of the pool ({bits} bits differ)"
            findings[image_id].add("duplicate", outcome, words)
