"""What the App offers on a loaded dataset: saved views, the order of its sidebar, colours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import ModuleType

from engine.curation.reviewer import ACCEPTED, REJECTED
from engine.curation.verdicts import BORDERLINE
from tasks.fiftyone_boxes import PREDICTIONS, PREDICTIONS_RAW

_GREEN, _RED, _AMBER = "#2E7D32", "#C62828", "#F9A825"
_CLASS_VIEWS = 20  # more classes than this get no view of their own


def save_views(fiftyone: ModuleType, dataset, class_names: Sequence[str]) -> None:
    """Save the views that a reviewer starts from: queue, borderline, worst label agreement, accepted, rejected, and one
    per class if these are few."""
    field = fiftyone.ViewField
    open_cases = dataset.match(field("reviewer") == None).sort_by("mean_score")  # noqa: E711  builds an expression
    dataset.save_view("queue", open_cases, "Nobody has decided yet; the lowest mean score first")
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


def dress(fiftyone: ModuleType, dataset) -> None:
    """What the App shows at first sight: one colour per class, what a decision rests on first in the sidebar."""
    odm = fiftyone.core.odm
    groups = {
        "tags": ["tags", "_label_tags"],
        "labels": [PREDICTIONS, "ground_truth", PREDICTIONS_RAW],
        "review": [
            "verdict",
            "gates",
            "reasons",
            "doubts",
            "reviewer",
            "mean_score",
            "label_agreement",
            "boxes",
            "source_distance",
            "train_distance",
            "held_out_distance",
            "train_similarity",
            "held_out_similarity",
            "crowding",
            "note",
        ],
        "provenance": [
            "item",
            "mode",
            "source_image_id",
            "strength",
            "guidance_scale",
            "eta",
            "seed",
            "prompt",
            "negative_prompt",
        ],
    }
    named = {path for paths in groups.values() for path in paths} | {"source_filepath"}
    groups["provenance"].append("source_filepath")
    groups["metadata"] = [path for path in dataset.get_field_schema() if path not in named and path != "group"]
    dataset.app_config.sidebar_groups = [
        odm.SidebarGroupDocument(name=name, paths=paths, expanded=name != "metadata") for name, paths in groups.items()
    ]
    dataset.app_config.active_fields = odm.ActiveFields(
        paths=["tags", "verdict", "mean_score", PREDICTIONS, "ground_truth"]
    )
    words = [{"value": ACCEPTED, "color": _GREEN}, {"value": REJECTED, "color": _RED}]
    dataset.app_config.color_scheme = fiftyone.ColorScheme(
        color_by="value", fields=[{"path": path, "valueColors": words} for path in ("verdict", "tags")]
    )
    dataset.save()
