"""The parts that plots are drawn from: inline SVG that takes its colours from the page.

A unit is about a pixel. All text from outside goes through Markup.format, which escapes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

WIDTH = 400


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round values inside an interval, about as many as wanted."""
    raw = (high - low) / wanted
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(step * k, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def drawing(height: float, parts: Sequence[Markup], label: str) -> Markup:
    """A drawing of WIDTH and this height; `label` is what a screen reader says."""
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, number(height), label)
    return head + Markup("").join(parts) + Markup("</svg>")


def line(x0: float, y0: float, x1: float, y1: float, style: str) -> Markup:
    """A straight line; `style` are its classes."""
    mark = Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>')
    return mark.format(style, number(x0), number(y0), number(x1), number(y1))


def dot(x: float, y: float, radius: float, style: str, title: str) -> Markup:
    """A disc that says `title` under the pointer."""
    mark = Markup('<circle class="{}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>')
    return mark.format(style, number(x), number(y), radius, title)


def text(x: float, y: float, text: str, style: str = "") -> Markup:
    """Words at a point; classes end and middle anchor them there."""
    return Markup('<text class="{}" x="{}" y="{}">{}</text>').format(style, number(x), number(y), text)


def number(value: float) -> str:
    """A length to a tenth."""
    return f"{value:.1f}".removesuffix(".0")
