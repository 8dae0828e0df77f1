from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from engine.data.dataset import read_dataset
from engine.evaluation.matching import image_results
from engine.evaluation.per_image import largest_changes
from engine.report.failures import FOUND, WRONG, changed_images


def test_both_ways_with_the_boxes_of_both_detectors(scene_folders):
    test = read_dataset(scene_folders[1], "train")
    half = len(test.images) // 2

    def detections(first_half: bool):
        return [
            {"image_id": a.image_id, "category_id": a.category_id, "bbox": list(a.bbox_xywh), "score": 0.5}
            for a in test.annotations
            if (a.image_id <= half) == first_half
        ]

    before, after = detections(True), detections(False)
    scored = [[image_results(test, found)] * 2 for found in (before, after)]
    changes = largest_changes(*scored, [0, 1])
    shown = changed_images(changes, test, dict.fromkeys((0, 1), before), dict.fromkeys((0, 1), after))
    assert [c.better for c in shown] == [True] * 4 + [False] * 4
    for change in shown:
        image = next(image for image in test.images if image.file_name == change.file_name)
        assert (image.id > half) == change.better
        assert change.found == ((0, change.objects) if change.better else (change.objects, 0))
        green = [near(uri, FOUND) for uri in (change.before, change.after)]
        assert (green[0] < green[1]) == change.better and near(change.after, WRONG) < max(green)


def near(uri: str, colour: str) -> int:
    """Pixels of about this colour."""
    data = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(np.asarray(Image.open(io.BytesIO(data)), dtype=int) - wanted).max(axis=2) < 40).sum())
