"""The generated images as points in a plane, for the App's panel "Embeddings": what looks alike lies together."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import numpy as np
from PIL import Image

from engine.data.dataset import Dataset
from engine.errors import DatasetError
from tasks.fiftyone_boxes import GENERATED_SLICE

KEY = "looks"  # the panel's name for it
_FEWEST = 3  # points that span a plane
_THUMBNAIL = (16, 16)


def save_plane(
    fiftyone: ModuleType, dataset, generated: Dataset, features: Mapping[int, np.ndarray] | None = None
) -> None:
    """Save the points with a loaded FiftyOne dataset.

    Args:
        features: image id -> what the images are compared by, (D,); None: their pixels, much reduced, which tells
            colours and rough shapes. Images that are not in it, or do not decode, get no point.
    """
    import fiftyone.brain as brain

    rows = _thumbnails(generated) if features is None else dict(features)
    view = dataset.select_group_slices(GENERATED_SLICE).match(fiftyone.ViewField("image_id").is_in(sorted(rows)))
    if len(rows) < _FEWEST:
        return
    values = np.stack([np.asarray(rows[image_id], np.float32) for image_id in view.values("image_id")])
    brain.compute_visualization(view, embeddings=values, method="pca", seed=0, brain_key=KEY, progress=False)


def _thumbnails(generated: Dataset) -> dict[int, np.ndarray]:
    rows = {}
    for image in generated.images:
        try:
            small = generated.load(image).resize(_THUMBNAIL, Image.Resampling.BOX)
        except (DatasetError, OSError):
            continue
        rows[image.id] = np.asarray(small.convert("RGB"), np.float32).ravel() / 255
    return rows
