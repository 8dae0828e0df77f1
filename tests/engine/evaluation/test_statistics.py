from __future__ import annotations

import math

import numpy as np
import pytest

from engine.errors import ConfigError
from engine.evaluation.matching import image_results
from engine.evaluation.resampled import METRICS, difference, differences_by_score, resample
from engine.evaluation.statistics import combine, draw_counts, spread, student_975, verdict


def test_student_quantiles():
    table = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 9: 2.2622, 29: 2.0452, 99: 1.9842, 999: 1.9623}
    for dof, value in table.items():
        assert student_975(dof) == pytest.approx(value, abs=1e-4), dof
    with pytest.raises(ValueError, match="degree"):
        student_975(0)


def test_spread():
    assert spread([1.0, 2.0, 3.0, 6.0]).mean == 3.0
    assert spread([1.0, 2.0, 3.0]).sd == pytest.approx(1.0)
    assert (spread([4.0]).sd, spread([4.0]).min) == (None, 4.0)
    for bad in ([], [math.nan]):
        with pytest.raises(ValueError, match="undefined"):
            spread(bad)


def simulate(seeds, seed_sd, image_sd, both_sd, interval, trials=1500, images=72):
    """Share of trials whose 95 % interval holds the true difference of 1.

    Every seed and every test image has its own normal effect on the difference, shared by all that it touches.
    """
    rng = np.random.default_rng(17)
    counts = draw_counts(images, 400, 0)
    held = 0
    for _ in range(trials):
        by_image = rng.normal(0, image_sd, images) + rng.normal(0, both_sd, (seeds, images))
        low, high = interval(1.0 + rng.normal(0, seed_sd, (seeds, 1)) + by_image, counts)
        held += low <= 1.0 <= high
    return held / trials


def ours(values, counts):
    return combine(values.mean(axis=1), values @ counts.T / values.shape[1]).ci95


def shared(values, seeds=3):
    """(n, R): the resamples do the same to every seed."""
    return np.tile(np.array(values), (seeds, 1))


def plain_bootstrap(values, counts):
    """Seeds and images resampled alike, percentiles of the mean."""
    picks = np.random.default_rng(0).integers(len(values), size=(len(counts), len(values)))
    return np.percentile(np.einsum("rm,rm->r", counts, values[picks].mean(axis=1)) / values.shape[1], [2.5, 97.5])


@pytest.mark.parametrize(
    ("seeds", "seed_sd", "image_sd", "both_sd"),
    [
        (3, 1.0, 0.0, 0.0),  # the seed alone
        (3, 0.0, 8.0, 0.0),  # the test images alone
        (3, 1.0, 8.0, 0.0),  # about equal
        (3, 0.3, 8.0, 8.0),
        (5, 1.0, 4.0, 4.0),
    ],
)
def test_the_interval_holds_the_truth_as_often_as_it_says(seeds, seed_sd, image_sd, both_sd):
    assert 0.93 <= simulate(seeds, seed_sd, image_sd, both_sd, ours) <= 0.99


def test_resampling_three_seeds_would_not_do():
    case = (3, 1.0, 2.0, 0.0)
    assert simulate(*case, plain_bootstrap, trials=400) < 0.85 < 0.92 < simulate(*case, ours, trials=400)


def test_the_formula():
    difference = combine([0.01, 0.02, 0.06], shared([0.02, 0.03, 0.04]))
    seed, image = np.std([1, 2, 6], ddof=1) / 100 / math.sqrt(3), 0.01
    half = math.sqrt((4.30265 * seed) ** 2 + (1.95996 * image) ** 2)
    assert difference.mean == pytest.approx(0.03)
    assert difference.ci95 == pytest.approx((0.03 - half, 0.03 + half), abs=1e-6)
    assert difference.verdict == "cannot tell"


def test_verdicts():
    assert [verdict(*pair) for pair in [(0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1), (0.0, 0.1)]] == [
        "helps", "hurts", "cannot tell", "cannot tell",
    ]  # fmt: skip


def test_seeds_to_settle_settle_it():
    open_question = combine([0.01, 0.05, 0.03], shared([0.029, 0.030, 0.031]))
    needed = open_question.seeds_to_settle
    assert open_question.verdict == "cannot tell" and needed > 3
    sd = np.std([0.01, 0.05, 0.03], ddof=1)

    def half(seeds):
        return math.hypot(student_975(seeds - 1) * sd / math.sqrt(seeds), 1.95996 * 0.001)

    assert half(needed) < 0.03 < half(needed - 1)


def test_no_number_of_seeds_beats_a_small_test_set():
    small = combine([0.01, 0.011, 0.012], shared([-0.02, 0.01, 0.04]))
    assert small.seeds_to_settle is None and small.lasting_error == pytest.approx(small.image_error) == 0.03
    level = combine([0.01, -0.01], shared([0.0, 0.0], seeds=2))
    assert level.seeds_to_settle is None and level.lasting_error == 0


def test_more_seeds_settle_noise_that_is_not_of_the_test_images_alone():
    rng = np.random.default_rng(3)
    counts = draw_counts(300, 400, 0)

    def differences(seeds):  # every seed finds other images hard: no noise that the test images bring to all seeds
        values = 0.8 + rng.normal(0, 8, (seeds, 300))
        return combine(values.mean(axis=1) / 100, values @ counts.T / 300 / 100)

    asked = [differences(3) for _ in range(100)]
    open_ones = [one for one in asked if one.verdict == "cannot tell"]
    promised = [one.seeds_to_settle for one in open_ones]
    assert len(open_ones) > 50 and promised.count(None) < 0.15 * len(open_ones)
    # The mean of three seeds is itself uncertain, and so is what it promises; it is right more often than not.
    seeds = int(np.median([n for n in promised if n]))
    assert np.mean([differences(seeds).verdict == "helps" for _ in range(60)]) > 0.5


def paired_difference(baseline, treatment, resamples=1000, **of):
    return difference(resample(baseline, resamples), resample(treatment, resamples), **of)


def test_too_few_seeds(make_case):
    results = image_results(*make_case(0))
    with pytest.raises(ConfigError, match="2 seeds"):
        paired_difference([results], [results])


def blurred(dataset, sd, seed):
    """Detections that are the truth with noise on the boxes, and scores to match."""
    rng = np.random.default_rng(seed)
    detections = []
    for annotation in dataset.annotations:
        x, y, w, h = np.array(annotation.bbox_xywh) + rng.normal(0, sd, 4) * annotation.bbox_xywh[2]
        detections.append({
            "image_id": annotation.image_id, "category_id": annotation.category_id,
            "bbox": [x, y, max(w, 1), max(h, 1)], "score": float(rng.uniform(0.1, 1)),
        })  # fmt: skip
    return image_results(dataset, detections)


def test_better_boxes_help_and_worse_ones_hurt(make_case):
    dataset, _ = make_case(5, images=60, crowds=False)
    poor, good = ([blurred(dataset, sd, s) for s in range(3)] for sd in (0.15, 0.05))
    helps, hurts = paired_difference(poor, good, resamples=200), paired_difference(good, poor, resamples=200)
    assert helps.verdict == "helps" and hurts.verdict == "hurts"
    assert helps.mean == pytest.approx(-hurts.mean)
    means = [np.mean([arm.mean_average_precision() for arm in arms]) for arms in (poor, good)]
    assert helps.mean == pytest.approx(means[1] - means[0])
    assert helps == paired_difference(poor, good, resamples=200)  # the same seed, the same interval
    assert paired_difference(poor, good, metric="map50", resamples=200).mean != helps.mean
    by_class = [paired_difference(poor, good, class_name=name, resamples=0).mean for name in poor[0].classes]
    assert np.mean(by_class) == pytest.approx(helps.mean)


def test_an_arm_against_itself_is_no_difference(make_case):
    arm = [image_results(*make_case(0))] * 3
    same = paired_difference(arm, arm, resamples=50)
    assert (same.mean, same.ci95, same.verdict) == (0.0, (0.0, 0.0), "cannot tell")


def test_pairing_narrows_the_interval(make_case):
    """What makes images hard is shared by both arms and cancels: the same detections plus a little noise in one arm."""
    dataset, _ = make_case(5, images=60, crowds=False)
    arms = [blurred(dataset, 0.08, s) for s in range(3)]
    counts = draw_counts(60, 300, 0)
    alone = np.std([a.mean_average_precision(counts) for a in arms], axis=1).mean()
    assert paired_difference(arms, [blurred(dataset, 0.08, 0), *arms[1:]], resamples=300).image_error < alone / 5


def test_arms_that_do_not_pair_are_refused(make_case):
    one, two = image_results(*make_case(0)), image_results(*make_case(1))
    with pytest.raises(ValueError, match="do not pair"):
        paired_difference([one, one], [one, two])
    with pytest.raises(ValueError, match="do not pair"):
        paired_difference([one, one], [one])
    with pytest.raises(ValueError, match="'map60' is not one of"):
        paired_difference([one, one], [one, one], metric="map60")
    with pytest.raises(ValueError, match="'dragon' is not one of"):
        paired_difference([one, one], [one, one], class_name="dragon")


def test_every_score_and_class_has_the_interval_that_it_has_alone(make_case, make_dataset):
    dataset, _ = make_case(5, images=60, crowds=False)
    poor, good = ([blurred(dataset, sd, s) for s in range(3)] for sd in (0.15, 0.05))
    before, after = (resample(arm, 100) for arm in (poor, good))
    found = differences_by_score(before, after)
    assert set(found) == {"map50", "map75", "per_class"} and set(found["per_class"]) == set(poor[0].classes)
    counts = draw_counts(60, 100, 0)
    changes = [b.average_precision(counts)[:, 1].mean(axis=1) for b in good]
    changes = np.mean(changes, axis=0) - np.mean([b.average_precision(counts)[:, 1].mean(axis=1) for b in poor], axis=0)
    assert found["per_class"]["class 1"].image_error == pytest.approx(np.std(changes, ddof=1))
    at_75 = [
        a.average_precision()[0, :, 5].mean() - b.average_precision()[0, :, 5].mean()
        for a, b in zip(good, poor, strict=True)
    ]
    assert found["map75"].per_seed == pytest.approx(at_75) and METRICS[1:] == ("map50", "map75")


def test_a_class_in_fewer_than_two_test_images_has_no_interval(make_dataset):
    box = (10, 10, 50, 50)
    kinds = [(1, "in two images"), (2, "in one"), (3, "in none")]
    dataset = make_dataset([1, 2, 3], kinds, [(1, 1, box, 0), (2, 1, box, 0), (3, 2, box, 0), (1, 3, box, 1)])
    arms = [resample([blurred(dataset, sd, s) for s in range(2)], 50) for sd in (0.2, 0.05)]
    per_class = differences_by_score(*arms)["per_class"]
    assert per_class["in one"] is per_class["in none"] is None and per_class["in two images"].resamples > 40
    with pytest.raises(ValueError, match="in none is undefined"):
        difference(*arms, class_name="in none")
