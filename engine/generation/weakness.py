"""Where a detector is weak, from the results.json of a comparison: more is drawn of that.

Only scores of validation images are read, of the detector trained on real images alone. A comparison's verdict is on
the test images: were more drawn of what fails there, the next verdict would be on images that had a say in the
training data.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from engine.errors import DatasetError
from engine.sections import SIZES


def has_validation(path: Path) -> bool:
    """Whether the results hold validation scores: the dataset had a val.json, and they are no older file.

    Raises:
        DatasetError: the results are not usable.
    """
    return _validation(path) is not None


def by_weak_classes(ids: Mapping[str, int], path: Path, highest: float) -> dict[int, float]:
    """AP of the strongest class / AP of this one, `highest` at most, by category id; a class without an AP, for want of
    validation objects, is left out.

    Args:
        ids: category ids by the names of all classes.

    Raises:
        DatasetError: the results are not usable, of other classes, or without validation scores.
    """
    per_class = _required(path).get("per_class", {})
    if set(ids) != set(per_class):
        raise DatasetError(
            f"{path} measures the classes {sorted(per_class)}, the dataset has {sorted(ids)}. "
            "Give the results of a comparison on this dataset as generation.weak_classes."
        )
    return _best_over_own({ids[name]: scores for name, scores in per_class.items()}, highest)


def by_weak_sizes(path: Path, highest: float) -> dict[str, float]:
    """Likewise by size: AP of the strongest size / AP of this one, `highest` at most.

    Raises:
        DatasetError: the results are not usable, or without validation scores.
    """
    scores = _required(path)
    return _best_over_own({size: scores[f"map_{size}"] for size in SIZES}, highest)


def _validation(path: Path) -> Mapping | None:
    from engine.evaluation.results import read_results  # it loads the evaluator, which plans do without

    results = read_results(path)
    return results["arms"][results["baseline"]].get("validation")


def _required(path: Path) -> Mapping:
    scores = _validation(path)
    if scores is None:
        raise DatasetError(
            f"{path} holds no validation scores, and test scores do not decide what is drawn: a later comparison on "
            "the same test images would flatter. Add validation images to the real dataset (val.json; de import --val) "
            "and run the comparison again."
        )
    return scores


def _best_over_own(scores: Mapping, highest: float) -> dict:
    """From scores per seed; a key without a defined score is left out."""
    defined = {key: [value for value in values if value is not None] for key, values in scores.items()}
    means = {key: sum(values) / len(values) for key, values in defined.items() if values}
    best = max(means.values(), default=0.0)
    ratios = {key: best / mean if mean else highest if best else 1.0 for key, mean in means.items()}
    return {key: round(min(ratio, highest), 4) for key, ratio in ratios.items()}
