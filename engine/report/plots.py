"""Plots as inline SVG that takes its colours from the page, so that one drawing serves light and dark.

A unit is about a pixel: every drawing is WIDTH wide and the page shows it at 320 to 480 pixels. All text from outside
goes through Markup.format, which escapes it. Colour classes c0, c1, ... belong to arms and are set by the page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from engine.report import svg

_LEFT, _RIGHT = 10, 390
_COLOURS = 8
_NAME, _SHORT_NAME = 42, 24  # characters of a name that fit above a row: alone, beside an interval


def difference_plot(
    rows: Sequence[tuple[str, int, float, float, float]], label: str, span: Sequence[float] = ()
) -> Markup:
    """One interval a row against a zero line: (name, colour, mean, low, high), in the unit shown; label: of what. A
    name may have a second line.

    span: values that the axis reaches too, so that several plots can be compared.
    """
    axis = _Axis([*(value for row in rows for value in row[2:]), *span, 0.0])
    top, step, more = 6, 46, 16
    bottom = top + sum(step + more * ("\n" in row[0]) for row in rows)
    parts = [axis.drawn(top, bottom, signed=True), svg.line(axis.at(0), top, axis.at(0), bottom, "zero")]
    y = top - 14
    for name, colour, mean, low, high in rows:
        name, _, second = name.partition("\n")
        y += step + (more if second else 0)
        first = y - 16 - (more if second else 0)
        parts += [svg.text(_LEFT, y - 16, _cut(second), "small")] if second else []
        parts += [
            svg.text(_LEFT, first, _cut(name, _SHORT_NAME)),
            svg.text(_RIGHT, first, f"{signed(mean)} ({signed(low)} to {signed(high)})", "end number"),
            svg.line(axis.at(low), y, axis.at(high), y, f"interval c{colour}"),
            svg.line(axis.at(low), y - 4, axis.at(low), y + 4, f"interval c{colour}"),
            svg.line(axis.at(high), y - 4, axis.at(high), y + 4, f"interval c{colour}"),
            svg.dot(axis.at(mean), y, 5, f"c{colour}", f"{name}: {signed(mean)}"),
        ]
    return svg.drawing(bottom + 22, parts, label)


def seeds_plot(rows: Sequence[tuple[str, int, Sequence[float]]], seeds: Sequence[int]) -> Markup:
    """A dot for every training, a stroke at the mean, a line over one deviation either side: (name, colour, values)."""
    spans = {}
    for name, _, values in rows:
        mean, sd = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        spans[name] = (mean, mean - sd, mean + sd)
    axis = _Axis([v for span in spans.values() for v in span] + [v for row in rows for v in row[2]])
    top, step = 6, 46
    parts = [axis.drawn(top, top + step * len(rows))]
    for index, (name, colour, values) in enumerate(rows):
        y = top + step * index + 32
        mean, low, high = spans[name]
        parts += [
            svg.text(_LEFT, y - 16, _cut(name)),
            svg.text(_RIGHT, y - 16, f"{mean:.1f}", "end number"),
            svg.line(axis.at(low), y, axis.at(high), y, f"interval faint c{colour}"),
        ]
        parts += [
            svg.dot(axis.at(value), y, 4.5, f"see-through c{colour}", f"{name}, seed {seed}: {value:.1f}")
            for seed, value in zip(seeds, values, strict=True)
        ]
        parts.append(svg.line(axis.at(mean), y - 8, axis.at(mean), y + 8, "mean"))
    return svg.drawing(top + step * len(rows) + 22, parts, "Score of every training")


def class_plot(classes: Sequence[tuple[str, Sequence[tuple[str, int, Sequence[float]]]]]) -> Markup:
    """Bars by class, one an arm, whisker from the lowest to the highest seed: (class, [(arm, colour, values)])."""
    highest = max((v for _, arms in classes for _, _, values in arms for v in values), default=1.0)
    axis = _Axis([0.0, highest], right=_RIGHT - 34)
    parts, y = [], 6.0
    for name, arms in classes:
        parts.append(svg.text(_LEFT, y + 11, _cut(name)))
        y += 17
        for arm, colour, values in arms:
            if values:
                parts.append(_bar(axis, y, arm, colour, values))
            else:
                parts.append(svg.text(axis.at(0), y + 9, "no such object in the test images", "small"))
            y += 13
        y += 9
    return svg.drawing(y + 18, [axis.drawn(6, y), *parts], "Average precision by class")


def _bar(axis: _Axis, y: float, arm: str, colour: int, values: Sequence[float]) -> Markup:
    mean = float(np.mean(values))
    bar = Markup('<rect class="c{}" x="{}" y="{}" width="{}" height="9" rx="1.5"><title>{}: {}</title></rect>').format(
        colour,
        svg.number(axis.at(0)),
        svg.number(y),
        svg.number(max(axis.at(mean) - axis.at(0), 0.5)),
        arm,
        f"{mean:.1f}",
    )
    whisker = svg.line(axis.at(min(values)), y + 4.5, axis.at(max(values)), y + 4.5, "whisker")
    return bar + whisker + svg.text(_RIGHT, y + 8.5, f"{mean:.1f}", "small end number")


def loss_plot(curves: Sequence[tuple[str, int, Sequence[Sequence[Sequence[float]]]]]) -> Markup | None:
    """Training loss against step, one line a seed: (arm, colour, [[(step, loss), ...] per seed]). None without data."""
    points = [(s, v) for _, _, seeds in curves for curve in seeds for s, v in curve if math.isfinite(v)]
    if len({step for step, _ in points}) < 2:
        return None
    losses = [loss for _, loss in points]
    logarithmic = min(losses) > 0 and max(losses) / min(losses) > 8
    left, top, bottom = 46, 8, 208
    level = math.log10 if logarithmic else float
    steps = _Axis([0, max(step for step, _ in points)], left=left)
    low, high = level(min(losses)), level(max(losses))
    high = high if high > low else low + 1
    parts = [steps.drawn(top, bottom)]
    for tick in _log_ticks(min(losses), max(losses)) if logarithmic else svg.ticks(low, high, 5):
        y = bottom - (level(tick) - low) / (high - low) * (bottom - top)
        if top - 1 <= y <= bottom + 1:
            parts += [svg.line(left, y, _RIGHT, y, "grid"), svg.text(left - 6, y + 4, f"{tick:g}", "small end")]
    for name, colour, seeds in curves:
        for curve in seeds:
            path = " ".join(
                f"{svg.number(steps.at(s))},{svg.number(bottom - (level(v) - low) / (high - low) * (bottom - top))}"
                for s, v in _thinned(curve)
                if math.isfinite(v)
            )
            line = Markup('<polyline class="curve c{}" points="{}"><title>{}</title></polyline>')
            parts.append(line.format(colour, path, name))
    return svg.drawing(bottom + 22, parts, "Training loss against step" + (", logarithmic" if logarithmic else ""))


def signed(value: float) -> str:
    """'+1.2', '−0.3' with a true minus sign, '0.0'."""
    text = f"{abs(value):.1f}"
    return text if float(text) == 0 else ("+" if value > 0 else "−") + text


def arm_colours(names: Sequence[str]) -> Mapping[str, int]:
    """Number of the colour class of each arm, in order."""
    return {name: index % _COLOURS for index, name in enumerate(names)}


class _Axis:
    """Horizontal scale over some values, widened a little unless it starts at zero."""

    def __init__(self, values: Sequence[float], left: float = _LEFT, right: float = _RIGHT) -> None:
        low, high = min(values), max(values)
        span = (high - low) or max(abs(high), 1.0) * 0.2
        self.low = 0.0 if low == 0 else low - 0.06 * span
        self.high = 0.0 if high == 0 and low < 0 else high + 0.06 * span
        if self.high == self.low:
            self.high = self.low + span
        self.left, self.right = left, right

    def at(self, value: float) -> float:
        return self.left + (value - self.low) / (self.high - self.low) * (self.right - self.left)

    def drawn(self, top: float, bottom: float, signed: bool = False) -> Markup:
        parts = [svg.line(self.left, bottom, self.right, bottom, "axis")]
        for tick in svg.ticks(self.low, self.high, 5):
            label = f"{tick:g}".replace("-", "−")
            label = f"+{label}" if signed and tick > 0 else label
            x = self.at(tick)
            anchor = "end" if x > self.right - 12 else "start" if x < self.left + 6 else "middle"
            parts += [svg.line(x, top, x, bottom, "grid"), svg.text(x, bottom + 15, label, f"small {anchor}")]
        return Markup("").join(parts)


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]


def _thinned(curve: Sequence[Sequence[float]], most: int = 240) -> list[Sequence[float]]:
    stride = max(1, math.ceil(len(curve) / most))
    return [*curve[::stride], *([curve[-1]] if len(curve) % stride != 1 and stride > 1 else [])]


def _cut(name: str, most: int = _NAME) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
