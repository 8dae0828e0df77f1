"""What a training leaves to look at as it goes: training.csv, curves.png, and examples.png."""

from __future__ import annotations

import csv
import importlib.util
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from engine.data.files import write_atomically

CURVE, PLOT, EXAMPLES = "training.csv", "curves.png", "examples.png"
_SHARE = 20  # of the time since, at most one part in so many goes into pictures

Curve = Sequence[tuple[int, float, dict[str, float]]]  # (step, learning rate, mean of every named loss)


class Journal:
    """Writes into `folder`: every loss as a table at each entry of the curve, pictures at intervals.

    Args:
        examples: a picture of what the model finds now, on images that it is not trained on; None: no picture.
    """

    def __init__(self, folder: Path, examples: Callable[[], Image.Image] | None = None):
        self.folder, self.examples = folder, examples
        self._drawn, self._cost = time.monotonic(), 1.0

    def write(self, name: str, curve: Curve, show: Callable[[Callable], Image.Image], last: bool) -> None:
        """Bring the files up to date. `show` calls what it is given with the model ready for prediction."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / CURVE, table(curve).encode())
        began = time.monotonic()
        if began - self._drawn < _SHARE * self._cost and not last:
            return
        if importlib.util.find_spec("matplotlib") is not None:  # a bare training machine may lack it
            write_atomically(self.folder / PLOT, plot(name, curve))
        if self.examples is not None:
            write_atomically(self.folder / EXAMPLES, _png(show(self.examples)))
        self._drawn = time.monotonic()
        self._cost = self._drawn - began


def table(curve: Curve) -> str:
    """The curve as comma-separated values: step, learning_rate, loss, and each part of the loss."""
    names = list(dict.fromkeys(name for _, _, losses in curve for name in losses))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", "learning_rate", *names])
    for step, rate, losses in curve:
        writer.writerow([step, f"{rate:.6g}", *(f"{losses[n]:.6g}" if n in losses else "" for n in names)])
    return text.getvalue()


def plot(name: str, curve: Curve) -> bytes:
    """The losses, and below them the learning rate, against the step, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [step for step, _, _ in curve]
    names = list(dict.fromkeys(part for _, _, losses in curve for part in losses))
    figure = Figure(figsize=(7, 4.8), dpi=110, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    marker = "o" if len(curve) < 3 else None
    for index, part in enumerate(names):
        values = [losses.get(part, float("nan")) for _, _, losses in curve]
        style = {"color": "black", "linewidth": 2} if part == "loss" else {"linewidth": 1.2, "color": f"C{index - 1}"}
        above.plot(steps, values, label="sum" if part == "loss" and len(names) > 1 else part, marker=marker, **style)
    if min(v for _, _, losses in curve for v in losses.values()) > 0:
        above.set_yscale("log")
        above.yaxis.set_major_formatter("{x:g}")
        above.yaxis.set_minor_formatter("{x:.2g}")
    above.set_ylabel("loss")
    above.set_title(f"{name}, step {steps[-1]}")
    above.legend(fontsize=8, ncols=2 if len(names) > 6 else 1, frameon=False)
    below.plot(steps, [rate for _, rate, _ in curve], color="tab:gray", marker=marker)
    below.set_ylim(bottom=0)
    below.set_ylabel("learning rate")
    below.set_xlabel("step")
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    return content.getvalue()


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()
