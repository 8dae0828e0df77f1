"""The scaling curve: how the score moves with the amount of generated data, and where more stops paying."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from engine.report import svg
from engine.report.scores import in_points

_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 384, 10, 220


def scaling_part(scaling: Mapping | None) -> dict | None:
    """Plot, sentences and rows (amount, images, mean, spread); None without two points that have scores."""
    points = [(p["multiple"], p.get("images"), in_points(p["map"])) for p in (scaling or {}).get("points", [])]
    points = sorted((point for point in points if point[2]), key=lambda point: point[0])
    if len(points) < 2:
        return None
    stops = scaling.get("stops_paying")
    words = [scaling["note"]] if scaling.get("note") else []
    if stops is not None:
        words.insert(0, f"More generated data stops paying at about {stops:.2g} times the real images.")
    return {
        "plot": scaling_plot([(multiple, values) for multiple, _, values in points], stops),
        "marked": stops is not None,
        "words": words,
        "rows": [
            (
                f"× {multiple:g}",
                "–" if images is None else images,
                f"{statistics.fmean(values):.1f}",
                f"± {statistics.stdev(values):.1f}" if len(values) > 1 else "",
            )
            for multiple, images, values in points
        ],
    }


def scaling_plot(points: Sequence[tuple[float, Sequence[float]]], mark: float | None) -> Markup:
    """A dot for every training, a line through the means: (multiple of the real data, values). The amounts stand at
    equal distances, for they usually double; mark: an upright line at an amount."""
    multiples = [multiple for multiple, _ in points]
    every = [value for _, values in points for value in values]
    low, high = min(every), max(every)
    margin = (high - low) * 0.08 or 1.0
    low, high = low - margin, high + margin

    def x(multiple: float) -> float:
        place = sum(m <= multiple for m in multiples) - 1
        if place < 0 or multiple >= multiples[-1]:
            share = max(place, 0)
        else:
            share = place + (multiple - multiples[place]) / (multiples[place + 1] - multiples[place])
        return _LEFT + 16 + share / (len(multiples) - 1) * (_RIGHT - _LEFT - 32)

    def y(value: float) -> float:
        return _BOTTOM - (value - low) / (high - low) * (_BOTTOM - _TOP)

    parts = []
    for tick in svg.ticks(low, high, 5):
        parts += [
            svg.line(_LEFT, y(tick), _RIGHT, y(tick), "grid"),
            svg.text(_LEFT - 6, y(tick) + 4, f"{tick:g}", "small end"),
        ]
    parts.append(svg.line(_LEFT, _BOTTOM, _RIGHT, _BOTTOM, "axis"))
    if mark is not None:
        parts.append(svg.line(x(mark), _TOP, x(mark), _BOTTOM, "zero"))
    means = [(x(multiple), y(statistics.fmean(values))) for multiple, values in points]
    shape = Markup('<polyline class="curve c1" points="{}"/>')
    parts.append(shape.format(" ".join(f"{svg.number(a)},{svg.number(b)}" for a, b in means)))
    for multiple, values in points:
        parts.append(svg.text(x(multiple), _BOTTOM + 16, f"× {multiple:g}", "small middle"))
        parts += [svg.dot(x(multiple), y(v), 4, "see-through c1", f"× {multiple:g}: {v:.1f}") for v in values]
    parts.append(
        svg.text((_LEFT + _RIGHT) / 2, _BOTTOM + 32, "generated images, in multiples of the real ones", "small middle")
    )
    return svg.drawing(_BOTTOM + 40, parts, "mAP against the amount of generated data")
