import pytest
import torch
from by_heart import learn_by_heart

from engine.detection.build import build_detector
from engine.detection.detector import ConvBackbone, Detector, Reader
from engine.detection.heads import HeadSettings
from engine.detection.heads.dense import Fcos
from engine.detection.targets import Target
from engine.sections import DetectorSettings

SIZE = 64


def build(kind: str) -> Detector:
    torch.manual_seed(0)
    backbone = ConvBackbone(16)
    return Detector(backbone, Reader(HeadSettings(kind, 32, 1), 3, backbone.channels, backbone.strides))


def target(boxes=(), labels=(), ignore=()) -> Target:
    return Target(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(ignore, dtype=torch.float32).reshape(-1, 4),
    )


@pytest.mark.parametrize("kind", ["fcos", "retinanet"])
def test_boxes_of_a_batch_are_those_of_each_image_alone(kind):
    detector = build(kind).eval()
    pixels = torch.randn(3, 3, SIZE, SIZE + 32)
    together = detector.detect(pixels)
    for i, found in enumerate(together):
        alone = detector.detect(pixels[i : i + 1])[0]
        torch.testing.assert_close(found.scores, alone.scores, atol=1e-5, rtol=1e-4)
        assert (found.boxes_xyxy[:, 2] <= SIZE + 32).all() and (found.boxes_xyxy[:, 3] <= SIZE).all()
        assert (found.scores[:-1] >= found.scores[1:]).all()


@pytest.mark.parametrize("kind", ["fcos", "retinanet"])
def test_an_image_without_objects_gives_a_finite_loss(kind):
    losses = build(kind)(torch.randn(2, 3, SIZE, SIZE), [target(), target([(5, 5, 30, 30)], [1])])
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("kind", ["fcos", "retinanet"])
def test_an_ignore_region_takes_its_places_out_of_the_loss(kind):
    detector, pixels = build(kind), torch.randn(1, 3, SIZE, SIZE)

    def classification(ignore) -> float:
        return detector(pixels, [target([(4, 4, 24, 24)], [0], ignore)])["classification"].item()

    everything, half, nothing = classification([]), classification([(32, 0, 64, 64)]), classification([(0, 0, 64, 64)])
    assert everything > half > nothing
    # Inside the object itself the object counts, whatever is ignored around it.
    assert nothing > 0


@pytest.mark.parametrize("name", ["small", "fcos_resnet50_fpn"])
def test_every_untrained_box_of_fcos_has_a_width_and_so_a_gradient(name):
    settings = DetectorSettings(name=name, width=64, resolution=64)
    for seed in range(3):
        torch.manual_seed(seed)
        module = build_detector(settings, 6).module
        (fcos,) = (part for part in module.modules() if isinstance(part, Fcos))
        width = fcos.head.regression_head.bbox_reg.in_channels
        boxes, _ = fcos.head.regression_head([torch.randn(2, width, 8, 8)])
        assert (boxes > 0).float().mean() > 0.95 and 0.8 < boxes.mean() < 1.2


def test_a_detector_learns_two_pictures_by_heart():
    """The whole of backbone, pyramid, head, loss and decoding: boxes come back where they were put."""
    detector = build("fcos")
    pixels = torch.zeros(2, 3, SIZE, SIZE)
    pixels[0, 0, 10:40, 8:36] = 1.0
    pixels[1, 2, 20:44, 24:56] = 1.0
    targets = [target([(8, 10, 36, 40)], [0]), target([(24, 20, 56, 44)], [2])]
    learn_by_heart(detector, pixels, targets, rate=3e-3, steps=80)


def test_an_object_between_the_anchors_keeps_its_best_one_in_an_ignore_region():
    """RetinaNet gives a small object its best anchor wherever that is: it learns, whatever is ignored around it."""
    detector, pixels = build("retinanet"), torch.randn(1, 3, SIZE, SIZE)
    small = [(21, 21, 23, 23)]
    loss = detector(pixels, [target(small, [0], [(0, 0, 64, 64)])])["classification"]
    assert 0 < loss < 5
