"""A generated dataset as a FiftyOne dataset: a view for people, rebuilt from the files whenever it is lost.

Each group holds the generated image (slice `generated`) beside the real image that it was drawn from (`source`).
Its boxes are there twice: `predictions` and `ignored` to edit, and the read-only `predictions_raw`, as generated.
Datasets are loaded under a temporary name and renamed when complete: nobody opens a half-filled one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from engine.curation.decisions import Decisions, annotations_digest
from engine.curation.edits import ImageEdits, apply_edits
from engine.curation.provenance import source_image_id
from engine.curation.queues import decided_tag
from engine.curation.repeats import SOURCE
from engine.curation.reviewer import ACCEPTED, REJECTED, Shown
from engine.curation.verdicts import BORDERLINE, Verdict
from engine.data.dataset import Dataset, ImageRecord
from tasks.fiftyone_boxes import EDITED, GENERATED_SLICE, PREDICTIONS_RAW, detections, make_editable, predictions
from tasks.fiftyone_plane import save_plane
from tasks.fiftyone_views import dress, save_views
from tasks.home import exclusive_lock, home_folder

SOURCE_SLICE = "source"
QUEUE = "queue"
_TEXTS = ("source_filepath", "mode", "seed", "prompt", "negative_prompt", "verdict", "gates", "note", "reviewer", QUEUE)
_SCORES = (
    "mean_score",
    "label_agreement",
    "source_distance",
    "train_distance",
    "held_out_distance",
    "train_similarity",
    "held_out_similarity",
    "crowding",
)
_NUMBERS = ("strength", "guidance_scale", "eta", *_SCORES)
_COUNTS = ("image_id", "item", "source_image_id", "boxes")


def dataset_name(generated: Path) -> str:
    """The name under which a folder is known in FiftyOne: its last two parts and a digest of its full path."""
    folder = Path(generated).resolve()
    words = re.sub(r"[^A-Za-z0-9]+", "-", "-".join(folder.parts[-2:])).strip("-").lower() or "dataset"
    return f"{words[:60].strip('-')}-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"


def find(fiftyone: ModuleType, name: str):
    """The loaded FiftyOne dataset of that name, or None."""
    return fiftyone.load_dataset(name, reload=True) if fiftyone.dataset_exists(name) else None


def shows(dataset, generated: Path) -> bool:
    """Whether a FiftyOne dataset holds the annotations that the folder has now."""
    return dataset.info.get("annotations_sha256") == annotations_digest(generated)


def read_shown(dataset) -> list[Shown]:
    """The state of every generated image, read from the database and not from samples that may be stale."""
    view = dataset.select_group_slices(GENERATED_SLICE)
    columns = view.values(["image_id", "tags", "verdict", "reasons", "note"])
    return [
        Shown(image_id, tuple(tags or ()), verdict, tuple(reasons or ()), note or "")
        for image_id, tags, verdict, reasons, note in zip(*columns, strict=True)
    ]


def queue_owners(dataset) -> dict[int, str]:
    """Image id -> the reviewer whose queue it is in, of the images that are in one."""
    if not dataset.has_field(QUEUE):
        return {}
    columns = dataset.select_group_slices(GENERATED_SLICE).values(["image_id", QUEUE])
    return {image_id: name for image_id, name in zip(*columns, strict=True) if name}


def load(
    fiftyone: ModuleType,
    generated: Dataset,
    real: Mapping[str, Dataset] | None,
    verdicts: Sequence[Verdict],
    decisions: Decisions,
    edits: Mapping[int, ImageEdits],
    features: Mapping[int, np.ndarray] | None = None,
) -> str:
    """Load a generated dataset under its name, replacing what was there.

    Args:
        fiftyone: the connected module.
        generated: split "annotations".
        real: the dataset that it was generated from, by split; None shows no source images.
        verdicts: the gates' word on every image.
        decisions: what holds in the end, a person's word included.
        edits: what a person did to the boxes.
        features: see `tasks.fiftyone_plane.save_plane`.

    Returns:
        the dataset's name.

    Raises:
        DatasetError: an edit does not fit its image.
    """
    name, edited = dataset_name(generated.folder), apply_edits(generated, edits)
    with exclusive_lock(home_folder() / f"{name}.lock"):
        for left_over in fiftyone.list_datasets(f"{name}.*"):  # of a loading that was killed
            fiftyone.delete_dataset(left_over)
        dataset = fiftyone.Dataset(f"{name}.loading", persistent=True)
        _declare(fiftyone, dataset)
        dataset.info = {
            "folder": str(generated.folder.resolve()),
            "annotations_sha256": annotations_digest(generated.folder),
        }
        dataset.add_samples(list(_samples(fiftyone, generated, edited, real, verdicts, decisions)), progress=False)
        dataset.add_dynamic_sample_fields()
        save_views(fiftyone, dataset, [category.name for category in generated.categories])
        dress(fiftyone, dataset, [category.name for category in generated.categories])
        make_editable(dataset, [category.name for category in generated.categories])
        save_plane(fiftyone, dataset, generated, features)
        if fiftyone.dataset_exists(name):
            fiftyone.load_dataset(name).name = f"{name}.old"
        dataset.name = name
        if fiftyone.dataset_exists(f"{name}.old"):
            fiftyone.delete_dataset(f"{name}.old")
    return name


def _declare(fiftyone: ModuleType, dataset) -> None:
    """All fields, also those that no sample fills: views and sidebars rely on them."""
    dataset.add_group_field("group", default=GENERATED_SLICE)
    for name in _COUNTS:
        dataset.add_sample_field(name, fiftyone.IntField)
    for name in _NUMBERS:
        dataset.add_sample_field(name, fiftyone.FloatField)
    for name in _TEXTS:
        dataset.add_sample_field(name, fiftyone.StringField)
    for name in ("reasons", "doubts"):
        dataset.add_sample_field(name, fiftyone.ListField, subfield=fiftyone.StringField)
    for name in (*EDITED, PREDICTIONS_RAW, "ground_truth"):
        dataset.add_sample_field(name, fiftyone.EmbeddedDocumentField, embedded_doc_type=fiftyone.Detections)


def _samples(
    fiftyone: ModuleType,
    generated: Dataset,
    edited: Dataset,
    real: Mapping[str, Dataset] | None,
    verdicts: Sequence[Verdict],
    decisions: Decisions,
) -> Iterator:
    names = {category.id: category.name for category in generated.categories}
    by_id = {verdict.image_id: verdict for verdict in verdicts}
    sources = {image.id: image for image in real[SOURCE].images} if real else {}
    for image in generated.images:
        group = fiftyone.Group()
        source = sources.get(source_image_id(image))
        source_path = str(real[SOURCE].image_path(source).resolve()) if source else None
        sample = fiftyone.Sample(
            filepath=str(generated.folder.resolve() / "images" / image.file_name),
            group=group.element(GENERATED_SLICE),
            **predictions(fiftyone, generated, edited, image, names),
            **_fields(image, by_id[image.id], decisions, source_path),
        )
        sample["metadata"] = fiftyone.ImageMetadata(width=image.width, height=image.height, num_channels=3)
        yield sample
        if source:
            beside = fiftyone.Sample(
                filepath=source_path,
                group=group.element(SOURCE_SLICE),
                ground_truth=detections(fiftyone, real[SOURCE], source, names),
                source_image_id=source.id,
            )
            beside["metadata"] = fiftyone.ImageMetadata(width=source.width, height=source.height, num_channels=3)
            yield beside


def _fields(image: ImageRecord, verdict: Verdict, decisions: Decisions, source_path: str | None) -> dict:
    """Provenance, scores and verdict of one generated image. The seed is text: 64 bits are not exact in a browser."""
    provenance = image.extra.get("de")
    provenance = provenance if isinstance(provenance, dict) else {}
    word = ACCEPTED if image.id in decisions.accepted else REJECTED
    by_person = decisions.reviewer.get(image.id)
    decided = [] if by_person is None else [decided_tag(decisions.decided_by.get(image.id))]
    fields = {
        "image_id": image.id,
        "source_filepath": source_path,
        "seed": None if provenance.get("seed") is None else str(provenance["seed"]),
        "tags": [word, *verdict.reasons, *([BORDERLINE] if verdict.outcome == BORDERLINE else []), *decided],
        "verdict": word,
        "gates": verdict.outcome,
        "reasons": list(verdict.reasons),
        "doubts": list(verdict.doubts),
        "note": decisions.rejected.get(image.id) or verdict.note,
        "reviewer": None if by_person is None else (ACCEPTED if by_person else REJECTED),
        "boxes": int(verdict.scores["boxes"]) if "boxes" in verdict.scores else None,
    }
    for key in ("item", "mode", "source_image_id", "strength", "guidance_scale", "eta", "prompt", "negative_prompt"):
        fields[key] = provenance.get(key)
    for key in _SCORES:
        fields[key] = verdict.scores.get(key)
    return {key: float(value) if key in _NUMBERS and value is not None else value for key, value in fields.items()}
