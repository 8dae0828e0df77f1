"""Curves on the unit square: precision and recall against score, reliability, agreement against encode ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from engine.report import svg

_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 388, 8, 228
_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Curve:
    """A named line through points (x, y), each in 0..1; a point whose y is None interrupts it. dots: show the points,
    each with a radius in pixels."""

    name: str
    colour: int
    points: Sequence[tuple[float, float | None]]
    dots: Sequence[float] = ()


def unit_plot(
    curves: Sequence[Curve],
    label: str,
    below: str,
    *,
    upright: str = "",
    mark: float | None = None,
    level: float | None = None,
    diagonal: bool = False,
) -> Markup:
    """A drawing of curves, `below` the name of the x axis, `upright` that of the y axis. mark: a vertical line at x;
    level: a horizontal one at y; diagonal: from corner to corner. Values outside 0..1 are drawn at the edge."""
    parts = [_grid(), svg.text((_LEFT + _RIGHT) / 2, _BOTTOM + 32, below, "small middle")]
    if upright:
        parts.append(svg.text(_LEFT + 6, _TOP + 12, upright, "small"))
    if diagonal:
        parts.append(svg.line(_x(0), _y(0), _x(1), _y(1), "zero"))
    if level is not None:
        parts.append(svg.line(_LEFT, _y(level), _RIGHT, _y(level), "zero"))
    if mark is not None:
        parts.append(svg.line(_x(mark), _TOP, _x(mark), _BOTTOM, "mean"))
        anchor = "end" if mark > 0.5 else ""
        parts.append(svg.text(_x(mark) + (-5 if anchor else 5), _BOTTOM - 8, f"{mark:.2f}", f"number {anchor}".strip()))
    for curve in curves:
        parts += _lines(curve)
        parts += [
            svg.dot(_x(x), _y(y), radius, f"c{curve.colour}", f"{curve.name}: {y:.2f} at {x:.2f}")
            for (x, y), radius in zip(curve.points, curve.dots, strict=False)
            if y is not None
        ]
    return svg.drawing(_BOTTOM + 40, parts, label)


def _grid() -> Markup:
    parts = []
    for value in _TICKS:
        parts += [
            svg.line(_LEFT, _y(value), _RIGHT, _y(value), "grid" if value else "axis"),
            svg.text(_LEFT - 6, _y(value) + 4, f"{value:g}", "small end"),
            svg.text(_x(value), _BOTTOM + 15, f"{value:g}", "small middle"),
        ]
    return Markup("").join(parts)


def _lines(curve: Curve) -> list[Markup]:
    """One polyline for each run of defined points."""
    runs: list[list[str]] = [[]]
    for x, y in curve.points:
        if y is None:
            runs.append([])
        else:
            runs[-1].append(f"{svg.number(_x(x))},{svg.number(_y(y))}")
    shape = Markup('<polyline class="curve c{}" points="{}"><title>{}</title></polyline>')
    return [shape.format(curve.colour, " ".join(run), curve.name) for run in runs if len(run) > 1]


def _x(value: float) -> float:
    return _LEFT + min(max(value, 0.0), 1.0) * (_RIGHT - _LEFT)


def _y(value: float) -> float:
    return _BOTTOM - min(max(value, 0.0), 1.0) * (_BOTTOM - _TOP)
