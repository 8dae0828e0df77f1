import dataclasses

import numpy as np
import pytest

from engine.data.dataset import read_dataset
from engine.data.segmentation import decode_masks, encode_mask
from engine.errors import DatasetError
from engine.evaluation.coco_map import evaluate

SIZE = (64, 64)


@pytest.fixture
def world(world_folder):
    return read_dataset(world_folder, "train")


def detections(dataset, change) -> list[dict]:
    found = []
    for a in dataset.annotations:
        mask = decode_masks([a.extra["segmentation"]], SIZE)[0]
        shown = {"image_id": a.image_id, "category_id": a.category_id, "bbox": list(a.bbox_xywh), "score": 0.9}
        found.append({**shown, "segmentation": encode_mask(change(mask))})
    return found


def test_exact_masks_score_one(world):
    exact = detections(world, lambda mask: mask)
    metrics = evaluate(world, exact, "segm")
    assert metrics.map == 1.0 and metrics.map75 == 1.0
    assert metrics.counts == evaluate(world, exact).counts


def test_right_boxes_with_wrong_masks_score_as_boxes_alone(world):
    def half(mask: np.ndarray) -> np.ndarray:
        columns = np.flatnonzero(mask.any(axis=0))
        mask = mask.copy()
        mask[:, columns[0] : (columns[0] + columns[-1]) // 2 + 4] = False
        return mask

    wrong = detections(world, half)
    assert evaluate(world, wrong).map == 1.0
    assert evaluate(world, wrong, "segm").map < 0.2


def test_a_missing_mask_is_named(world):
    exact = detections(world, lambda mask: mask)
    bare = [*exact[:2], {k: v for k, v in exact[2].items() if k != "segmentation"}, *exact[3:]]
    with pytest.raises(DatasetError, match="detection 2: it has none"):
        evaluate(world, bare, "segm")
    first = dataclasses.replace(world.annotations[0], extra={})
    without = dataclasses.replace(world, annotations=(first, *world.annotations[1:]))
    with pytest.raises(DatasetError, match=rf"annotation {first.id}: it has none"):
        evaluate(without, exact, "segm")
