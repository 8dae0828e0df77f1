"""The page of `de adapter-report`: how good an adapter's labels are, in one file without scripts."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from engine.data.files import write_atomically
from engine.report.gallery import data_uri
from engine.report.pictures import contact_sheet, draw_boxes, label_colours
from engine.report.templates import open_templates
from engine.report.unit_plot import Curve, unit_plot

if TYPE_CHECKING:
    from engine.adapter.agreement import RatioSheet
    from engine.sections import Settings

DASH = "–"
MOST_CLASSES = 12  # curves that are drawn; quality.json holds all
_CELL = 240  # pixels of a picture in a sheet
_SIZES = {"map_small": "small", "map_medium": "medium", "map_large": "large"}


def report_quality(
    data: Path, ldm: str | Path, adapter: Path, out: Path, settings: Settings, images: int, seed: int, record: bool
) -> dict:
    """`de adapter-report`: measure, write out/quality.json and out/report.html, and, if `record`, the adapter's card.

    Returns the content of quality.json. Raises as `measure_quality`.
    """
    from engine.adapter.quality import measure_quality, record_quality

    quality = measure_quality(data, ldm, adapter, settings, images, seed)
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(quality.numbers, indent=1, sort_keys=True, allow_nan=False)
    write_atomically(out / "quality.json", text.encode() + b"\n")
    given = {"adapter": adapter, "data": data, "ldm": ldm, "out": out, "images": images, "seed": seed}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    write_quality_page(
        quality.numbers,
        quality.sheets,
        out,
        title=f"How good are the labels of {adapter.name}?",
        commands=[shlex.join(["de", "adapter-report", *words])],
    )
    if record:
        record_quality(adapter, quality.numbers)
    return quality.numbers


def write_quality_page(
    numbers: Mapping, sheets: Sequence[RatioSheet], out: Path, *, title: str, commands: Sequence[str] = ()
) -> Path:
    """Write out/report.html from the content of quality.json and the pictures; returns its path.

    commands: what makes the report again, a line each. Equal input gives equal bytes.
    """
    environment = open_templates()
    names = numbers["classes"]
    colours = label_colours(list(names.values()))
    page = environment.get_template("quality.html.j2").render(
        title=title,
        commands=list(commands),
        **_context(numbers),
        sheets=[(sheet.encode_ratio, _sheet_uri(sheet, names, colours)) for sheet in sheets],
        key=colours,
    )
    out.mkdir(parents=True, exist_ok=True)
    path = out / "report.html"
    write_atomically(path, page.encode("utf-8", errors="replace"))
    return path


def _context(numbers: Mapping) -> dict:
    real, thresholds, ratios = numbers["real"], numbers["thresholds"], numbers["encode_ratios"]
    return {
        "images": numbers["data"]["images"],
        "objects": real["counts"]["objects"],
        "none_found": real["counts"]["detections"] == 0,
        "scores": [(words, points(real[key])) for key, words in (("map", "AP"), ("map50", "AP50"), ("map75", "AP75"))],
        "sizes": [(words, points(real[key])) for key, words in _SIZES.items()],
        "calibration": points(numbers["reliability"]["calibration_error"]),
        "wanted": f"{thresholds['wanted_precision']:g}",
        "fixed": f"{numbers['fixed']['score']:g}",
        "suppress": f"{thresholds['suppress_iou']:g}",
        "min_boxes": thresholds["min_boxes"],
        "own_rule": numbers["settings"]["generation"]["thresholds"] == "per_class",
        "classes": [_class_row(numbers, key, name) for key, name in numbers["classes"].items()],
        "pooled": _threshold_cells(thresholds["pooled"] | {"pooled": False}, numbers["fixed"]["pooled"]),
        "pooled_plot": _score_plot("all classes", numbers["curves"]["pooled"], thresholds["pooled"], numbers),
        "class_plots": _class_plots(numbers),
        "classes_left_out": max(0, len(numbers["classes"]) - MOST_CLASSES),
        "reliability_plot": _reliability_plot(numbers["reliability"]),
        "ratio_plot": _ratio_plot(ratios),
        "ratio_rows": [_ratio_row(row) for row in (ratios["real"], *ratios["ratios"])],
        "ratio_images": ratios["images"],
        "rule": "the thresholds per class"
        if ratios["rule"] == "per_class"
        else f"the fixed threshold {ratios['rule']:g}",
        **{key: numbers[key] for key in ("adapter", "settings")},
    }


def points(value: float | None) -> str:
    """In points of 100, to one decimal; a dash for what is undefined."""
    return DASH if value is None else f"{100 * value:.1f}"


def _class_row(numbers: Mapping, category_id: str, name: str) -> dict:
    entry = numbers["thresholds"]["per_class"][category_id]
    real, unique = numbers["real"], _unique_name(numbers, category_id, name)
    return {
        "name": name,
        "boxes": entry["boxes"],
        "ap": points(real["per_class"][unique]),
        "ap50": points(real["per_class50"][unique]),
        **_threshold_cells(entry, numbers["fixed"]["per_class"][category_id]),
    }


def _unique_name(numbers: Mapping, category_id: str, name: str) -> str:
    """The name under which scores per class are kept: see `class_names`."""
    return f"{name} ({category_id})" if list(numbers["classes"].values()).count(name) > 1 else name


def _threshold_cells(entry: Mapping, fixed: Mapping) -> dict:
    score = entry["score"]
    if entry["pooled"]:
        note = "of all classes together"
    elif score is None:
        note = "ignore regions only" if entry["precision"] is None else f"best precision {points(entry['precision'])}"
    else:
        note = ""
    return {
        "score": DASH if score is None else f"{score:.2f}",
        "note": note,
        "precision": DASH if score is None else points(entry["precision"]),
        "recall": DASH if score is None or not entry["boxes"] else points(entry["recall"]),
        "fixed_precision": points(fixed["precision"]),
        "fixed_recall": points(fixed["recall"]),
    }


def _score_plot(name: str, curve: Mapping, entry: Mapping, numbers: Mapping):
    scores = numbers["curves"]["scores"]
    curves = [
        Curve("precision", 1, list(zip(scores, curve["precision"], strict=True))),
        Curve("recall", 2, list(zip(scores, curve["recall"], strict=True))),
    ]
    return unit_plot(
        curves,
        f"Precision and recall against score threshold, {name}",
        "score threshold",
        mark=entry["score"],
        level=numbers["thresholds"]["wanted_precision"],
    )


def _class_plots(numbers: Mapping) -> list:
    thresholds = numbers["thresholds"]["per_class"]
    shown = sorted(numbers["classes"], key=lambda key: -thresholds[key]["boxes"])[:MOST_CLASSES]
    return [
        (name, _score_plot(name, numbers["curves"]["per_class"][key], thresholds[key], numbers))
        for key, name in numbers["classes"].items()
        if key in shown
    ]


def _reliability_plot(reliability: Mapping):
    bins = [b for b in reliability["bins"] if b["boxes"]]
    most = max((b["boxes"] for b in bins), default=1)
    radii = [3 + 9 * math.sqrt(b["boxes"] / most) for b in bins]
    curve = Curve("precision", 1, [(b["score"], b["precision"]) for b in bins], radii)
    return unit_plot([curve], "Precision of boxes against their score", "mean score of the boxes", diagonal=True)


def _ratio_plot(ratios: Mapping):
    rows = [{**ratios["real"], "encode_ratio": 0.0}, *ratios["ratios"]]
    shown = (("AP50", 1, "map50"), ("AP", 0, "map"), ("F1", 2, "f1"))
    curves = [Curve(name, c, [(r["encode_ratio"], r[key]) for r in rows], [3.5] * len(rows)) for name, c, key in shown]
    return unit_plot(curves, "Agreement with the source's boxes against encode ratio", "encode ratio")


def _ratio_row(row: Mapping) -> dict:
    keys = ("map", "map50", "f1", "precision", "recall")
    ratio = row["encode_ratio"]
    return {
        "ratio": "real image" if ratio is None else f"{ratio:.1f}",
        "values": [points(row[key]) for key in keys],
        "labels": row["labels"],
        "ignored": row["ignored"],
    }


def _sheet_uri(sheet: RatioSheet, names: Mapping[str, str], colours: Mapping[str, str]) -> str:
    pictures = []
    for shown in sheet.images:
        objects = [box for box in shown.boxes if not box["iscrowd"]]
        pictures.append(
            draw_boxes(
                Image.fromarray(shown.image),
                [box["bbox"] for box in objects],
                [names[str(box["category_id"])] for box in objects],
                [box["score"] for box in objects],
                colours=colours,
                short_edge=_CELL,
                ignored_xywh=[box["bbox"] for box in shown.boxes if box["iscrowd"]],
            )
        )
    return data_uri(contact_sheet(pictures, columns=6, cell=_CELL, gap=4))
