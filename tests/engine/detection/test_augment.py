"""Views of pictures in which every object is a bright rectangle: boxes must be where the bright pixels are."""

import pytest
import torch

from engine.detection.augment import augmented
from engine.detection.bank import IGNORE, Sample

HEIGHT, WIDTH = 96, 128
BOXES = torch.tensor([[10.0, 12.0, 40.0, 36.0], [70.0, 40.0, 110.0, 80.0]])


def sample(labels=(0, 2), red: int = 255) -> Sample:
    image = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    for x0, y0, x1, y1 in BOXES.int().tolist():
        image[:, y0:y1, x0:x1] = red
    return Sample(image, BOXES, torch.tensor(labels), 1, "")


def bright(image, box) -> float:
    x0, y0, x1, y1 = box.round().int().tolist()
    return image[:, y0:y1, x0:x1].float().mean().item()


@pytest.mark.parametrize("augment", ["none", "standard", "strong"])
@pytest.mark.parametrize("alone", [True, False])
def test_boxes_stay_on_their_objects(augment, alone):
    kinds, ignored = set(), 0
    for seed in range(60):
        image, target = augmented(sample(), seed, augment, () if alone else [sample()] * 4)
        again = augmented(sample(), seed, augment, () if alone else [sample()] * 4)
        assert torch.equal(image, again[0]) and torch.equal(target.boxes_xyxy, again[1].boxes_xyxy)
        assert image.shape == (3, HEIGHT, WIDTH) and image.dtype == torch.uint8
        boxes = torch.cat([target.boxes_xyxy, target.ignore_xyxy])
        assert (boxes >= 0).all() and (boxes[:, 2] <= WIDTH).all() and (boxes[:, 3] <= HEIGHT).all()
        assert (boxes[:, 2:] - boxes[:, :2] >= 2).all()
        for box in target.boxes_xyxy:
            if (box[2:] - box[:2]).min() > 6:
                assert bright(image, box) > 50  # black lies around it; mixup may halve it, contrast too
        kinds.add(len(target.boxes_xyxy))
        ignored += len(target.ignore_xyxy)
    if augment == "none":
        assert kinds == {2} and torch.equal(image, sample().image)
    assert (ignored > 0) == (augment == "strong")  # objects of which little is left
    assert (max(kinds) > 2) == (augment == "strong" and not alone)  # mosaic and mixup


def test_strong_views_carry_ignore_regions():
    seen = 0
    for seed in range(20):
        _, target = augmented(sample((IGNORE, IGNORE)), seed, "strong")
        assert not len(target.boxes_xyxy)
        seen += len(target.ignore_xyxy)
    assert seen > 10
