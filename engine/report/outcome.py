"""What the report says of the generated set: what became of the images, what was dropped, who wrote the labels."""

from __future__ import annotations

from collections.abc import Mapping

from engine.report.scores import TITLES, mean

_WORDS = {"rejected": "rejected in review", "dropped": "dropped when drawn", "failed": "failed"}
_SHOWN = ("planned", "kept", "accepted", "boxes", "ignored", "dropped_boxes", "objects_per_class", *_WORDS)


def generated_part(generated: Mapping) -> dict | None:
    """Shares of a bar, and the reasons behind them; None where nothing was planned."""
    planned = generated.get("planned", 0)
    if not planned:
        return None
    sums = {outcome: sum(generated.get(outcome, {}).values()) for outcome in _WORDS}
    used = generated.get("accepted", generated.get("kept", 0) - sums["rejected"])
    parts = {"used": used, **sums}
    undecided = planned - sum(parts.values())
    if undecided > 0:
        parts["undecided"] = undecided
    return {
        "planned": planned,
        "used": used,
        "parts": [(name, number, 100 * number / planned) for name, number in parts.items() if number or name == "used"],
        "reasons": [
            (reason, words, n) for key, words in _WORDS.items() for reason, n in generated.get(key, {}).items()
        ],
        "boxes": generated.get("boxes"),
        "ignored": generated.get("ignored", 0),
        "dropped_boxes": [(reason, "", n) for reason, n in generated.get("dropped_boxes", {}).items()],
        "objects": [(name, "", n) for name, n in generated.get("objects_per_class", {}).items()],
        "more": {key: value for key, value in generated.items() if key not in _SHOWN},
    }


def adapter_quality(validation: Mapping | None) -> dict | None:
    """What the card says of the adapter's labels on held-out real images, in points; None where it says nothing."""
    if not validation or validation.get("map") is None:
        return None
    return {
        "images": validation.get("images"),
        "scores": [(TITLES[key], mean([validation.get(key)])) for key in ("map", "map50", "map75")],
        "classes": [(name, mean([value])) for name, value in validation.get("per_class", {}).items()],
    }


def leakage_rows(leakage: Mapping | None) -> list[tuple[str, str, object]]:
    """(what, where, number) of the counts of leakage, nested or flat."""
    rows: list[tuple[str, str, object]] = []
    for key, value in (leakage or {}).items():
        if isinstance(value, Mapping):
            rows += [(_plain(inner), _plain(key), n) for inner, n in value.items()]
        else:
            rows.append((_plain(key), "", value))
    return rows


def _plain(key: str) -> str:
    return str(key).replace("_", " ")
