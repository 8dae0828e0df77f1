"""Does the picture show what its words say, and does it look like the real ones? By an image-text encoder's cosines.

Cosines of such encoders mean little by themselves: what counts as much differs from encoder to encoder and from domain
to domain. So the real training images set the measure, with the words that generation would draw them with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from engine.curation.verdicts import Findings, grade
from engine.sections import ReviewSettings

FEWEST = 10  # real images: with fewer, chance sets the measure
MOST = 2000  # and more than so many make no better one
_MARGIN = 1.0  # standard deviations above the limit within which an image is borderline


def check_agreement(
    image_ids: Sequence[int],
    rows: np.ndarray,
    word_rows: Mapping[int, np.ndarray],
    real_rows: np.ndarray,
    real_word_rows: np.ndarray,
    settings: ReviewSettings,
    findings: Mapping[int, Findings],
) -> None:
    """Add the scores text_similarity and domain_similarity, and the reasons off_prompt and off_domain.

    Nothing is judged with fewer than FEWEST real images.

    Args:
        image_ids: of the generated images that `rows` are of.
        rows: (N, D) unit vectors of generated images. real_rows: (M, D) of real training images.
        word_rows: generated image id -> (D,) unit vector of its prompt; an image without words is not in it.
        real_word_rows: (M, D) of the words that each real image would be drawn with.
    """
    if len(real_rows) < FEWEST:
        return
    agreement = _Measure((real_rows * real_word_rows).sum(axis=1))
    likeness = _Measure(_nearest_other(real_rows))
    for image_id, row in zip(image_ids, rows, strict=True):
        nearest = float((real_rows @ row).max())
        judged = [("domain_similarity", "off_domain", nearest, likeness, "the nearest real image")]
        if image_id in word_rows:
            judged.append(("text_similarity", "off_prompt", float(word_rows[image_id] @ row), agreement, "its prompt"))
        for score, reason, value, measure, what in judged:
            found, below = findings[image_id], measure.below(value)
            found.scores[score] = value
            if settings.max_deviation:
                words = f"cosine {value:.3f} with {what}, {below:.1f} deviations below the mean of real images"
                found.add(reason, grade(-below, -settings.max_deviation, _MARGIN), words)


class _Measure:
    """Mean and standard deviation of real images' cosines, by which another is judged."""

    def __init__(self, values: np.ndarray) -> None:
        self.mean, self.deviation = float(values.mean()), max(float(values.std()), 1e-3)

    def below(self, value: float) -> float:
        return (self.mean - value) / self.deviation


def _nearest_other(rows: np.ndarray) -> np.ndarray:
    """(M,) cosine of each row with the nearest of the others. Not with their centre: a domain of several kinds of
    picture has its centre where no picture is."""
    nearest = [np.delete(rows @ row, place).max() for place, row in enumerate(rows)]
    return np.asarray(nearest)
