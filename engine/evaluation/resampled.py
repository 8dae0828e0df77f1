"""An arm's scores on the test images and on resamples of them: computed once, every difference is a subtraction.

Average precision of a resample is what costs; all metrics and classes are read off the same values, and so are the
differences of one arm to several others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.errors import ConfigError
from engine.evaluation.matching import ImageResults, mean_where_defined
from engine.evaluation.statistics import Difference, combine, draw_counts

METRICS = ("map", "map50", "map75")
_LEAST_IMAGES = 2  # with a class: of one image alone a resample cannot show how much the choice of images matters


@dataclass(frozen=True)
class Resampled:
    """Scores of S seeds. results (S,); metrics: name -> (S, 1 + R), per_class: class name -> (S, 1 + R): of the test
    images as they are, then of each of R resamples; NaN where undefined."""

    results: Sequence[ImageResults]
    metrics: Mapping[str, np.ndarray]
    per_class: Mapping[str, np.ndarray]


def resample(arm: Sequence[ImageResults], resamples: int, seed: int = 0) -> Resampled:
    """Score every seed of an arm on its images and on `resamples` of them; 0 for the images as they are alone. Arms
    with the same `seed` see the same resamples."""
    images = len(arm[0].image_ids)
    counts = np.ones((1, images))
    if resamples:
        counts = np.concatenate([counts, draw_counts(images, resamples, seed)])
    metrics, per_class = {name: [] for name in METRICS}, {name: [] for name in arm[0].classes}
    for results in arm:
        precision = results.average_precision(counts)
        by_class = precision.mean(axis=2)
        metrics["map"].append(mean_where_defined(by_class))
        for name in METRICS[1:]:
            at = np.isclose(results.ious, int(name[3:]) / 100)
            metrics[name].append(mean_where_defined(precision[:, :, at].mean(axis=2)))
        for name, values in zip(results.classes, by_class.T, strict=True):
            per_class[name].append(values)
    return Resampled(arm, *({name: np.stack(each) for name, each in of.items()} for of in (metrics, per_class)))


def difference(
    baseline: Resampled, treatment: Resampled, metric: str = "map", class_name: str | None = None
) -> Difference:
    """Treatment minus baseline, whose n-th seeds are the same and whose test images are: by the rule of `statistics`.

    Args:
        metric: map, map50 or map75. class_name: of this class alone, its mAP; the metric is not asked for then.

    Raises:
        ConfigError: fewer than two seeds. ValueError: arms that do not pair, or a score that is undefined.
    """
    _check_pairs(baseline.results, treatment.results)
    key, known = (metric, baseline.metrics) if class_name is None else (class_name, baseline.per_class)
    if key not in known:
        raise ValueError(f"'{key}' is not one of {', '.join(known)}")
    before, after = ((arm.metrics if class_name is None else arm.per_class)[key] for arm in (baseline, treatment))
    changes = after - before
    if not np.isfinite(changes[:, 0]).all():
        raise ValueError(f"{metric} of {class_name or 'all classes'} is undefined: the test split holds no such object")
    defined = changes[:, 1:][:, np.isfinite(changes[:, 1:]).all(axis=0)]
    return combine(changes[:, 0], defined if defined.size else None)


def differences_by_score(baseline: Resampled, treatment: Resampled) -> dict:
    """{map50, map75: Difference, per_class: {class: Difference of its mAP}}; None for a class with objects in fewer
    than two test images.

    Raises as `difference` does.
    """
    found = {name: difference(baseline, treatment, name) for name in METRICS[1:]}
    matches = baseline.results[0].matches["all"]
    images = {n: np.count_nonzero(m.objects) for n, m in zip(baseline.per_class, matches, strict=True)}
    return {
        **found,
        "per_class": {
            name: difference(baseline, treatment, class_name=name) if count >= _LEAST_IMAGES else None
            for name, count in images.items()
        },
    }


def _check_pairs(baseline: Sequence[ImageResults], treatment: Sequence[ImageResults]) -> None:
    if len(baseline) != len(treatment):
        raise ValueError(f"{len(baseline)} baseline seeds and {len(treatment)} treatment seeds do not pair")
    if len(baseline) < 2:
        raise ConfigError(f"an interval needs at least 2 seeds per arm, got {len(baseline)}: raise compare.seeds")
    first = baseline[0]
    for other in [*baseline, *treatment]:
        same = other.image_ids == first.image_ids and other.classes == first.classes
        if not same or any(
            (a.objects != b.objects).any() for a, b in zip(first.matches["all"], other.matches["all"], strict=True)
        ):
            raise ValueError("the arms were scored on different test images, classes or ground truth: they do not pair")
