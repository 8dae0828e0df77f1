"""Writes `report.html`: one file that explains itself, without scripts and without anything fetched.

The template is rendered with autoescape, for class names and prompts come from files of others; a content policy in
the page forbids scripts and requests as well. Parts of results.json that are not there have no section.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.data.files import write_atomically
from engine.evaluation.results import check_results
from engine.report import scores
from engine.report.failures import FOUND, WRONG, ChangedImage
from engine.report.gallery import GalleryItem, pair_uris
from engine.report.in_short import in_short
from engine.report.outcome import adapter_quality, generated_part, leakage_rows
from engine.report.pictures import CROWDED, label_colours
from engine.report.plots import arm_colours, class_plot, difference_plot, loss_plot, seeds_plot, signed
from engine.report.recipe import comparison_settings, settings_that_matter
from engine.report.scaling import scaling_part
from engine.report.templates import open_templates


def write_report(
    results: Mapping,
    out: Path,
    gallery: Sequence[GalleryItem] = (),
    changed: Sequence[ChangedImage] = (),
    *,
    commands: Sequence[str] = (),
    title: str = "Does the generated data help?",
) -> Path:
    """Write out/report.html from the content of results.json and the pictures to show; returns its path.

    gallery: generated images; changed: test images that the arms judge differently; commands: what makes the run
    again. Raises ValueError for inconsistent results, DatasetError for a picture that cannot be read. Equal input
    gives equal bytes.
    """
    check_results(results)
    environment = open_templates()
    colours = label_colours(sorted({label for item in gallery for label in item.labels}))
    page = environment.get_template("report.html.j2").render(
        title=title,
        commands=list(commands),
        **_context(results),
        gallery=_gallery(gallery, colours),
        gallery_key=colours if any(len(item.labels) > CROWDED for item in gallery) else {},
        changed=_by_direction(changed),
        mark_colours={"found": FOUND, "wrong": WRONG},
    )
    out.mkdir(parents=True, exist_ok=True)
    path = out / "report.html"
    write_atomically(path, page.encode("utf-8", errors="replace"))
    return path


def _context(results: Mapping) -> dict:
    arms, deltas, delta = results["arms"], results["deltas"], results["delta"]
    order = list(results.get("arm_order", arms))
    colours = arm_colours(order)
    columns = scores.defined_scores(arms)
    against = results.get("against", {})
    classes = scores.class_rows(results, order, colours)
    bars = scores.most_moved(classes)
    by_score = scores.score_difference_rows(results, [row["name"] for row in bars], colours)
    drawn = scores.drawn_arms(results, order)
    shown_bars = [(row["name"], [value for value in row["values"] if value[0] in drawn]) for row in bars]
    points = {name: scores.in_points(arms[name]["map"]) for name in order}
    generated = generated_part(results["generated"])
    return {
        "verdict": scores.verdict(results),
        "in_short": in_short(results, classes, generated),
        "baseline": delta["baseline"],
        "covers": "both the chance of the training seed and the choice of the test images"
        if delta.get("resamples", 2) > 1
        else "the chance of the training seed alone, not the choice of the test images (compare.bootstrap)",
        "differences": difference_plot(
            scores.difference_rows(deltas, order, colours, delta["baseline"]),
            "Difference of each arm to the baseline, 95 % interval",
        ),
        "by_score": difference_plot(by_score, "Difference of single scores and classes, 95 % interval")
        if by_score
        else None,
        "against": difference_plot(
            scores.difference_rows(against, order, colours), "The treatment minus each other arm, 95 % interval"
        )
        if against
        else None,
        "seeds_plot": seeds_plot(
            [(name, colours[name], points[name]) for name in order if points[name]], results["seeds"]
        ),
        "columns": [scores.TITLES[score] for score in columns],
        "arms": [scores.arm_row(name, arms[name], colours[name], deltas.get(name), columns) for name in order],
        "drawn": drawn,
        "class_bars": class_plot(shown_bars) if bars else None,
        "classes": [{**row, "moved": "–" if row["moved"] is None else signed(row["moved"])} for row in classes],
        "classes_left_out": len(classes) - len(bars),
        "recalls": scores.recall_plots(results, drawn, colours, [row["name"] for row in bars]),
        "losses": loss_plot([(name, colours[name], arms[name].get("loss_curve", [])) for name in drawn]),
        "scaling": scaling_part(results.get("scaling")),
        "changes": results.get("changes"),
        "generated": generated,
        "leakage": leakage_rows(results.get("leakage")),
        "adapter_quality": adapter_quality(results["adapter"].get("validation")),
        "matters": settings_that_matter(results),
        "settings": comparison_settings(results["settings"]),
        "drawn_with": results["generated"].get("drawn_with"),
        **{key: results[key] for key in ("adapter", "versions", "data", "seeds")},
    }


def _by_direction(changed: Sequence[ChangedImage]) -> list[tuple[str, list[ChangedImage]]]:
    groups = [(word, [c for c in changed if c.better == better]) for word, better in (("more", True), ("fewer", False))]
    return [(word, images) for word, images in groups if images]


def _gallery(gallery: Sequence[GalleryItem], colours: dict[str, str]) -> list[tuple[str, str, list[dict]]]:
    """(reason, range of encode ratios, pictures) in the order given."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for item in gallery:
        groups.setdefault((item.reason, item.group), []).append(_picture(item, colours))
    return [(reason, group, pictures) for (reason, group), pictures in groups.items()]


def _picture(item: GalleryItem, colours: dict[str, str]) -> dict:
    source, generated = pair_uris(item, colours)
    return {
        "source": source,
        "generated": generated,
        "caption": item.caption,
        "strength": f"{item.strength:.2f}",
        "objects": len(item.labels),
        "scores": _range(item.scores),
        "mean": f"{sum(item.scores) / len(item.scores):.2f}" if len(item.scores) else "",
        "ignored": len(item.ignored_xywh),
        "used": item.used,
        "refusal": item.refusal,
    }


def _range(values: Sequence[float]) -> str:
    return "" if not values else f"{min(values):.2f}" if len(values) == 1 else f"{min(values):.2f} to {max(values):.2f}"
