import dataclasses

import pytest
import torch

from engine.config import load_settings
from engine.detection.faster_rcnn import FasterRcnn, Resize
from engine.detection.targets import Target

SIDE = 64


@pytest.fixture(scope="module")
def detector() -> FasterRcnn:
    torch.manual_seed(0)
    settings = dataclasses.replace(load_settings().detector, resolution=SIDE)
    return FasterRcnn(settings, num_classes=3)


def target(boxes=(), labels=(), ignore=()) -> Target:
    def as_boxes(rows):
        return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)

    return Target(as_boxes(boxes), torch.tensor(labels, dtype=torch.int64), as_boxes(ignore))


def losses_of(detector: FasterRcnn, *targets: Target) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    detector.train()
    return detector(torch.rand(len(targets), 3, SIDE, SIDE) * 2 - 1, targets)


def test_an_image_that_is_ignored_whole_teaches_nothing_and_the_same_image_as_background_does(detector):
    ignored = losses_of(detector, target(ignore=[(0, 0, SIDE, SIDE)]))
    assert {name: loss.item() for name, loss in ignored.items()} == dict.fromkeys(ignored, 0.0)
    sum(ignored.values()).backward()  # finite, so that a batch of such images does not end a training
    detector.zero_grad()
    background = losses_of(detector, target())
    assert background["loss_objectness"] > 0.1 and background["loss_classifier"] > 0.1


def test_an_object_inside_an_ignore_region_is_still_learned(detector):
    box, everywhere = (8, 8, 40, 40), (0, 0, SIDE, SIDE)
    losses = losses_of(detector, target([box], [1], [everywhere]))
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses["loss_rpn_box_reg"] > 0 and losses["loss_classifier"] > 0


def test_ignore_regions_are_scaled_with_their_image():
    resize = Resize(SIDE, 2 * SIDE, [0.0] * 3, [1.0] * 3)
    region = torch.tensor([[0.0, 10.0, 100.0, 60.0]])
    truth = {"boxes": region.clone(), "labels": torch.tensor([1]), "ignore": region.clone()}
    image, scaled = resize.resize(torch.zeros(3, 2 * SIDE, 2 * SIDE), truth)
    assert image.shape[-2:] == (SIDE, SIDE)
    torch.testing.assert_close(scaled["ignore"], region / 2)
    torch.testing.assert_close(scaled["ignore"], scaled["boxes"])


def test_offsets_stay_float32_under_autocast(detector):
    detector.eval()
    with torch.autocast("cpu", torch.bfloat16):
        found = detector.detect(torch.rand(1, 3, SIDE, SIDE) * 2 - 1)[0]
        scores, offsets = detector.model.roi_heads.box_predictor(torch.rand(2, 1024))
    assert scores.dtype == offsets.dtype == found.boxes_xyxy.dtype == torch.float32
