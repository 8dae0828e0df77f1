"""What the App offers on a loaded dataset: saved views, the order of its sidebar, colours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import ModuleType

from engine.curation.queues import DECIDED
from engine.curation.reviewer import ACCEPTED, REJECTED
from engine.curation.verdicts import BORDERLINE, FAIL, PASS
from tasks.fiftyone_boxes import EDITED, PREDICTIONS, PREDICTIONS_RAW

_GREEN, _RED, _AMBER = "#2E7D32", "#C62828", "#F9A825"
_SLATE = "#546E7A"  # whatever has no meaning of its own
_CLASS_COLOURS = (
    "#E53935", "#1E88E5", "#FDD835", "#8E24AA", "#FB8C00", "#00ACC1", "#D81B60", "#7CB342", "#5E35B1", "#6D4C41",
)  # fmt: skip
_CLASS_VIEWS = 20  # more classes than this get no view of their own
_SIDEBAR = {
    "tags": ("tags", "_label_tags"),
    "labels": (*EDITED, "ground_truth", PREDICTIONS_RAW),
    "review": ("mean_score", "label_agreement", "boxes", "gates", "reasons", "doubts", "note", "queue"),
    "scores": (
        *("source_distance", "train_distance", "held_out_distance"),
        *("train_similarity", "held_out_similarity", "crowding"),
    ),
    "provenance": (
        *("image_id", "item", "mode", "source_image_id", "strength", "guidance_scale", "eta", "seed"),
        *("prompt", "negative_prompt", "source_filepath", "verdict", "reviewer"),
    ),
}


def save_views(fiftyone: ModuleType, dataset, class_names: Sequence[str]) -> None:
    """Save the views that a reviewer starts from: queue, borderline, worst label agreement, accepted, rejected, and one
    per class if these are few."""
    field = fiftyone.ViewField
    save_queues(fiftyone, dataset, ())
    narrow = dataset.match(field("gates") == BORDERLINE).sort_by("mean_score")
    dataset.save_view("borderline", narrow, "The gates cannot tell: these need a person", color=_AMBER)
    by_agreement = dataset.exists("label_agreement").sort_by("label_agreement")
    dataset.save_view("worst label agreement", by_agreement, "Labels that differ most from the source's boxes first")
    dataset.save_view("accepted", dataset.match_tags("accepted"), "Training uses these", color=_GREEN)
    dataset.save_view("rejected", dataset.match_tags("rejected"), "Training does not use these", color=_RED)
    if len(class_names) > _CLASS_VIEWS:
        return
    for name in class_names:
        if not re.search("[A-Za-z0-9]", name) or dataset.has_saved_view(f"class {name}"):
            continue  # FiftyOne makes web addresses of view names
        with_class = dataset.match(field(f"{PREDICTIONS}.detections.label").contains([name]))
        dataset.save_view(f"class {name}"[:100], with_class, f"Images with a box of class {name}")


def save_queues(fiftyone: ModuleType, dataset, reviewers: Sequence[str]) -> None:
    """Save the view of all images that wait for a decision, and one of each reviewer's own."""
    field = fiftyone.ViewField
    decided = field("tags").filter(field().re_match(f"^{DECIDED}( by |$)")).length() > 0
    waiting = dataset.match(~decided).sort_by("mean_score")
    for name in dataset.list_saved_views():
        if name.startswith("queue"):
            dataset.delete_saved_view(name)
    dataset.save_view("queue", waiting, "Nobody has decided yet; the lowest mean score first")
    for reviewer in reviewers:
        own = waiting.match(field("queue") == reviewer)
        dataset.save_view(queue_view(reviewer), own, f"What {reviewer} has to decide yet; the lowest mean score first")


def queue_view(reviewer: str | None) -> str:
    """The saved view that a reviewer starts from."""
    return f"queue {reviewer}" if reviewer else "queue"


def dress(fiftyone: ModuleType, dataset, class_names: Sequence[str]) -> None:
    """What the App shows at first sight: one colour per class, what a decision rests on first in the sidebar.

    Tiles show what the gates say, and not `verdict`, which is of the time when the dataset was loaded.
    """
    odm = fiftyone.core.odm
    closed = ("scores", "provenance", "metadata")
    named = {path for paths in _SIDEBAR.values() for path in paths}
    rest = [path for path in dataset.get_field_schema() if path not in named and path != "group"]
    dataset.app_config.sidebar_groups = [
        odm.SidebarGroupDocument(name=name, paths=[*paths], expanded=name not in closed)
        for name, paths in (_SIDEBAR | {"metadata": rest}).items()
    ]
    dataset.app_config.active_fields = odm.ActiveFields(
        paths=["tags", "gates", "mean_score", PREDICTIONS, "ground_truth"]
    )
    meaning = {ACCEPTED: _GREEN, PASS: _GREEN, REJECTED: _RED, FAIL: _RED, BORDERLINE: _AMBER}
    words = [{"value": word, "color": colour} for word, colour in meaning.items()]
    classes = [
        {"value": name, "color": _CLASS_COLOURS[place % len(_CLASS_COLOURS)]} for place, name in enumerate(class_names)
    ]
    dataset.app_config.color_scheme = fiftyone.ColorScheme(
        color_by="value",
        color_pool=[_SLATE],
        fields=[
            *({"path": path, "valueColors": words} for path in ("verdict", "tags", "gates")),
            *(
                {"path": path, "colorByAttribute": "label", "valueColors": classes}
                for path in (*EDITED, "ground_truth", PREDICTIONS_RAW)
            ),
        ],
    )
    dataset.save()
