"""What else a person asks for in the App: more or fewer images like some, and the accepted ones as an export.

Everything is written into the folder that the dataset was loaded from; no path is taken from the App.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from engine.curation import decisions, edits
from engine.curation.requests import Request, add_requests
from engine.data.export import EXPORTS, WRITERS, export_dataset
from engine.data.parts import dataset_parts
from engine.errors import ConfigError, DatasetError
from engine.generation.integrity import check_unchanged
from tasks.app_decisions import chosen
from tasks.collect import collect_from
from tasks.fiftyone_boxes import GENERATED_SLICE, PREDICTIONS
from tasks.fiftyone_dataset import dataset_name, shows
from tasks.home import exclusive_lock, home_folder

FORMATS = tuple(WRITERS)


def folder_of(dataset) -> Path:
    """The folder that a FiftyOne dataset was loaded from.

    Raises:
        DatasetError: it was not loaded by this project, or the folder holds other annotations now.
    """
    folder = Path(dataset.info.get("folder") or "")
    if not dataset.info.get("folder") or dataset_name(folder) != dataset.name:
        raise DatasetError(f"The dataset {dataset.name} was not loaded by `de review` or `de app`.")
    if not shows(dataset, folder):
        raise DatasetError(f"{folder}: annotations.json changed since it was loaded. Review the folder again.")
    return folder


def request(dataset, sample_ids: Sequence[str], wish: str) -> str:
    """Append a request for each image to requests.jsonl; images that were drawn from no real one are passed over.

    Raises:
        ConfigError: no image among them was drawn from a real one.
        DatasetError: see `folder_of`; or the requests that lie there are broken.
    """
    folder = folder_of(dataset)
    view = dataset.select_group_slices(GENERATED_SLICE).select([row.sample_id for row in chosen(dataset, sample_ids)])
    labels = (f"{PREDICTIONS}.detections.label", f"{PREDICTIONS}.detections.iscrowd")
    requests = []
    for image_id, source, ratio, names, crowds in zip(
        *view.values(["image_id", "source_image_id", "strength", *labels]), strict=True
    ):
        if source is None:
            continue
        objects = {name for name, crowd in zip(names or (), crowds or (), strict=True) if name and not crowd}
        requests.append(Request(image_id, source, tuple(sorted(objects)), ratio, wish))
    if not requests:
        raise ConfigError("None of these images was drawn from a real one, so there is nothing to draw from again.")
    with exclusive_lock(home_folder() / f"{dataset.name}.requests.lock"):
        path = add_requests(folder, requests)
    return (
        f"{len(requests)} requests for {wish} like this are in {path}. The next plan honours them with "
        f"--set generation.requests={path}"
    )


def send_to_export(module: ModuleType, dataset, format: str) -> str:
    """Collect what was decided, and export the accepted images to a folder of their own below the dataset's.

    The folder is named by format and content: the same decisions are exported once.

    Raises:
        ConfigError: an unknown format.
        DatasetError: see `folder_of`, `collect_from` and `export_dataset`.
    """
    if format not in FORMATS:
        raise ConfigError(f"Format {format!r} is not written. Formats: {', '.join(FORMATS)}.")
    folder = folder_of(dataset)
    collect_from(module, folder)
    out = folder / EXPORTS / f"{format}-{_state(folder)}"
    if out.exists():
        return f"Nothing was decided since the last export: {out}"
    check_unchanged(folder, (image for part in dataset_parts(folder, "annotations") for image in part.images))
    report = export_dataset(folder, out, format)
    return f"{out}: {report.text()}"


def _state(folder: Path) -> str:
    """A short digest of what decides which images and boxes go out."""
    whole = hashlib.sha256()
    for name in ("annotations.json", decisions.FILE, edits.FILE):
        path = folder / name
        whole.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None}\n".encode())
    return whole.hexdigest()[:12]
