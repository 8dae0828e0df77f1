from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from engine.errors import DatasetError
from engine.evaluation.coco_map import evaluate
from engine.evaluation.results import Arm, build_results, check_results, read_results, write_results
from engine.evaluation.statistics import combine


@pytest.fixture
def results(make_case):
    dataset, detections = make_case(0)
    metrics = [evaluate(dataset, detections), evaluate(dataset, [])]
    curve = [[(0, 2.0), (10, 1.0)]] * 2
    return build_results(
        [Arm("real", metrics, curve, 30, 0.0, [1.0, 2.0]), Arm("de", metrics[::-1], curve, 60, 0.5, [1.0, 2.0])],
        {"de": combine([0.1, 0.2], np.array([[0.1, 0.2]] * 2))},
        baseline="real", treatment="de", seeds=[0, 1],
        settings={"compare": {"seeds": 2}}, versions={"torch": "2"}, data={"test": {"images": 30}},
        generated={"planned": 10, "kept": 7, "dropped": {"no box": 2}, "failed": {"black image": 1}},
        adapter={"head": "fcos"},
    )  # fmt: skip


def test_what_others_rely_on_is_there(results, tmp_path):
    read = json.loads(write_results(tmp_path / "deep" / "results.json", results).read_text())
    assert set(read) >= {"arms", "delta", "seeds", "settings", "versions"}
    assert len(read["arms"]["real"]["map"]) == len(read["arms"]["real"]["map50"]) == len(read["seeds"]) == 2
    assert len(read["arms"]["de"]["per_class"]["class 0"]) == 2
    low, high = read["delta"]["ci95"]
    assert low < read["delta"]["mean"] < high
    assert read["delta"] == read["deltas"]["de"]
    assert read == read_results(tmp_path / "deep" / "results.json")


def test_validation_scores_are_a_part_of_their_own(results, make_case, tmp_path):
    dataset, detections = make_case(0)
    metrics = [evaluate(dataset, detections), evaluate(dataset, [])]
    arms = [Arm(name, metrics[::-1], [[]] * 2, 30, 0.0, [1.0, 2.0], {}, metrics) for name in ("real", "de")]
    built = build_results(
        arms, {"de": combine([0.1, 0.2], np.array([[0.1, 0.2]] * 2))},
        baseline="real", treatment="de", seeds=[0, 1], settings={}, versions={}, data={},
    )  # fmt: skip
    assert "validation" not in results["arms"]["real"]
    seen = read_results(write_results(tmp_path / "r.json", built))["arms"]["real"]["validation"]
    assert (seen["map"], seen["per_class"]["class 0"][1]) == ([metrics[0].map, 0.0], 0.0)
    for spoil in ({"map_small": [0.5]}, {"map": [0.5, 47.0]}, {"per_class": {"class 0": [0.1]}}):
        spoiled = copy.deepcopy(built)
        spoiled["arms"]["real"]["validation"] |= spoil
        with pytest.raises(ValueError, match=f"validation {next(iter(spoil))}"):
            check_results(spoiled)


def test_differences_of_scores_and_classes_are_checked_like_the_others(results, tmp_path):
    one = {**results["delta"]}
    results["delta_by_score"] = {"map50": one, "map75": one, "per_class": {"class 0": dict(one), "class 1": None}}
    read = read_results(write_results(tmp_path / "r.json", results))
    assert read["delta_by_score"]["per_class"] == {"class 0": one, "class 1": None}
    results["delta_by_score"]["per_class"]["class 0"]["ci95"] = [0.5, 0.6]
    with pytest.raises(ValueError, match="'of class 0': mean .* lies outside"):
        check_results(results)


def test_equal_results_give_equal_bytes(results, tmp_path):
    turned = dict(reversed(copy.deepcopy(results).items()))
    turned["arms"] = dict(reversed(turned["arms"].items()))
    first, second = write_results(tmp_path / "a.json", results), write_results(tmp_path / "b.json", turned)
    assert first.read_bytes() == second.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b.json"]


def test_undefined_scores_are_null(results, tmp_path):
    results["arms"]["real"]["map_large"] = [None, None]
    assert "NaN" not in write_results(tmp_path / "r.json", results).read_text()


FAULTS = [
    (lambda r: r["arms"]["real"].update(map=[0.5]), "map needs one entry per seed"),
    (lambda r: r["arms"]["real"].update(map=[0.5, 47.0]), "outside 0 to 1"),
    (lambda r: r["arms"]["real"].update(map=[0.5, -1.0]), "outside 0 to 1"),
    (lambda r: r["arms"]["real"]["per_class"].update({"class 0": [0.1]}), "per_class class 0"),
    (lambda r: r["arms"]["de"].pop("loss_curve"), "loss_curve"),
    (lambda r: r.update(seeds=[1, 1]), "repeat"),
    (lambda r: r["delta"].update(ci95=[0.5, 0.6]), "outside its interval"),
    (lambda r: r["delta"].update(verdict="great"), "verdict"),
    (lambda r: r["delta"].update(treatment="other"), "'other' is unknown"),
    (lambda r: r["delta"].pop("ci95"), "ci95 is missing"),
    (lambda r: r["generated"].update(kept=8), "do not add up"),
    (lambda r: r["adapter"].update(loss=float("nan")), "adapter.loss is nan"),
    (lambda r: r.pop("versions"), "'versions' is missing"),
    (lambda r: r.pop("baseline"), "'baseline' is missing"),
    (lambda r: r.update(baseline="other"), "baseline 'other' is none of the arms"),
]


@pytest.mark.parametrize(("spoil", "word"), FAULTS)
def test_inconsistent_results_are_not_written(results, tmp_path, spoil, word):
    results = copy.deepcopy(results)
    spoil(results)
    with pytest.raises(ValueError, match=word):
        check_results(results)
    with pytest.raises(ValueError):
        write_results(tmp_path / "results.json", results)
    assert not list(tmp_path.iterdir())


def test_a_torn_file_is_the_users_to_mend(results, tmp_path):
    path = write_results(tmp_path / "results.json", results)
    path.write_text(path.read_text()[:300])
    (tmp_path / "deep.json").write_text("[" * 100_000)
    for broken in (path, tmp_path / "absent.json", tmp_path / "deep.json"):
        with pytest.raises(DatasetError, match="run the comparison again"):
            read_results(broken)


def test_a_treatment_without_a_difference_is_refused(results):
    with pytest.raises(ValueError, match="treatment"):
        build_results([], {}, baseline="real", treatment="de", seeds=[0], settings={}, versions={}, data={})
