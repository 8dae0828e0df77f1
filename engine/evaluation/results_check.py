"""Whether the content of a `results.json` (see `results.py`) is whole and does not contradict itself."""

from __future__ import annotations

import math
from collections.abc import Mapping

SCORES = ("map", "map50", "map75", "map_small", "map_medium", "map_large", "ar100")
SECTIONS = ("settings", "versions", "data", "generated", "adapter")


def check_results(results: Mapping) -> None:
    """Raise ValueError with every fault found: missing parts, lists of the wrong length, scores outside 0 to 1,
    numbers that are not finite, counts of generated images that do not add up."""
    faults = [
        f"'{key}' is missing"
        for key in ("arms", "baseline", "delta", "deltas", "seeds", *SECTIONS)
        if key not in results
    ]
    if faults:
        raise ValueError("results: " + "; ".join(faults))
    if results["baseline"] not in results["arms"]:
        faults.append(f"the baseline {results['baseline']!r} is none of the arms")
    seeds = len(results["seeds"])
    if seeds == 0 or len(set(results["seeds"])) != seeds:
        faults.append(f"seeds {results['seeds']} are empty or repeat")
    for name, arm in results["arms"].items():
        faults += [f"arm '{name}': {fault}" for fault in _arm_faults(arm, seeds)]
    by_score = dict(results.get("delta_by_score", {}))
    single = {f"of {name}": one for name, one in by_score.pop("per_class", {}).items() if one is not None}
    all_deltas = (results["deltas"], results.get("against", {}), {"delta": results["delta"]}, by_score, single)
    for name, delta in (entry for deltas in all_deltas for entry in deltas.items()):
        faults += [f"difference '{name}': {fault}" for fault in _delta_faults(delta, results["arms"])]
    faults += _count_faults(results["generated"])
    faults += _non_finite(results, "results")
    if faults:
        raise ValueError("results: " + "; ".join(faults))


def _arm_faults(arm: Mapping, seeds: int) -> list[str]:
    lists = {key: arm.get(key) for key in (*SCORES, "loss_curve", "seconds")}
    lists |= {f"per_class {name}": values for name, values in arm.get("per_class", {}).items()}
    if "validation" in arm:
        seen = arm["validation"]
        lists |= {f"validation {key}": seen.get(key) for key in SCORES}
        lists |= {f"validation per_class {name}": values for name, values in seen.get("per_class", {}).items()}
    faults = [
        f"{key} needs one entry per seed ({seeds})"
        for key, values in lists.items()
        if not isinstance(values, list) or len(values) != seeds
    ]
    for key, values in lists.items():
        if key in ("loss_curve", "seconds") or not isinstance(values, list):
            continue
        if any(value is not None and not 0 <= value <= 1 for value in values):
            faults.append(f"{key} {values} is outside 0 to 1")
    return faults


def _delta_faults(delta: Mapping, arms: Mapping) -> list[str]:
    missing = [key for key in ("mean", "ci95", "verdict", "baseline", "treatment") if key not in delta]
    if missing:
        return [f"{', '.join(missing)} is missing"]
    low, high = delta["ci95"]
    faults = [f"arm '{delta[key]}' is unknown" for key in ("baseline", "treatment") if delta[key] not in arms]
    if not low <= delta["mean"] <= high:
        faults.append(f"mean {delta['mean']} lies outside its interval [{low}, {high}]")
    if delta["verdict"] not in ("helps", "hurts", "cannot tell"):
        faults.append(f"verdict '{delta['verdict']}' is unknown")
    return faults


def _count_faults(generated: Mapping) -> list[str]:
    if "planned" not in generated:
        return []
    dropped = sum(generated.get("dropped", {}).values())
    failed = sum(generated.get("failed", {}).values())
    if generated["planned"] == generated.get("kept", 0) + dropped + failed:
        return []
    return [
        f"generated images do not add up: planned {generated['planned']} is not kept {generated.get('kept', 0)} "
        f"+ dropped {dropped} + failed {failed}"
    ]


def _non_finite(value: object, where: str) -> list[str]:
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{where} is {value}"]
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    return [fault for key, item in items for fault in _non_finite(item, f"{where}.{key}")]
