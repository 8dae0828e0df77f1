import dataclasses

import pytest
import torch
from by_heart import learn_by_heart
from torchvision.ops import MultiScaleRoIAlign

from engine.detection.detector import ConvBackbone, Detector, Reader
from engine.detection.heads import HeadSettings
from engine.detection.heads.two_stage import TwoStageHead, _pool
from engine.detection.targets import MAX_BOXES, SCORE_FLOOR, Target

SIZE, STRIDES = 64, (4, 8, 16)
KINDS = ("fasterrcnn", "maskrcnn")


def build(kind: str) -> Detector:
    torch.manual_seed(0)
    backbone = ConvBackbone(16)
    return Detector(backbone, Reader(HeadSettings(kind, 32, 2), 3, backbone.channels, backbone.strides))


def target(boxes=(), labels=(), ignore=(), masks=None) -> Target:
    return Target(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(ignore, dtype=torch.float32).reshape(-1, 4),
        masks,
    )


def head_and_levels(kind: str = "fasterrcnn") -> tuple[TwoStageHead, list[torch.Tensor]]:
    torch.manual_seed(0)
    head = TwoStageHead(HeadSettings(kind, 16, 1), 3, STRIDES)
    return head, [torch.randn(1, 16, SIZE // s, SIZE // s, requires_grad=True) for s in STRIDES]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_found_in_a_batch_is_what_is_found_in_each_image_alone(kind):
    detector = build(kind).eval()
    pixels = torch.randn(3, 3, SIZE, SIZE + 32)
    for i, found in enumerate(detector.detect(pixels)):
        alone = detector.detect(pixels[i : i + 1])[0]
        torch.testing.assert_close(found.scores, alone.scores, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.boxes_xyxy, alone.boxes_xyxy, atol=1e-2, rtol=1e-4)
        assert (found.boxes_xyxy[:, 2] <= SIZE + 32).all() and (found.boxes_xyxy[:, 3] <= SIZE).all()
        assert (found.scores[:-1] >= found.scores[1:]).all() and (found.scores >= SCORE_FLOOR).all()
        assert 0 < len(found.scores) <= MAX_BOXES and set(found.labels.tolist()) <= {0, 1, 2}
        if kind == "maskrcnn":
            assert found.masks.dtype == torch.bool and found.masks.shape == (len(found.scores), SIZE, SIZE + 32)
        else:
            assert found.masks is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_mode_of_the_module_changes_neither_losses_nor_detections(kind):
    head, levels = head_and_levels(kind)
    truth = [target([(8, 8, 40, 40)], [1], masks=torch.ones(1, SIZE, SIZE, dtype=torch.bool))]
    outcomes = []
    for training in (True, False):
        head.train(training)
        torch.manual_seed(0)
        losses, found = head.loss(levels, (SIZE, SIZE), truth), head.detect(levels, (SIZE, SIZE))[0]
        assert all(part.training == training for part in head.modules())
        outcomes.append((losses, found))
    (losses, found), (losses_too, found_too) = outcomes
    torch.testing.assert_close(losses, losses_too)
    assert torch.equal(found.boxes_xyxy, found_too.boxes_xyxy) and torch.equal(found.scores, found_too.scores)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("everywhere", [(), ((0, 0, SIZE, SIZE),)])
def test_images_without_objects_give_finite_losses_and_gradients(kind, everywhere):
    """Also when nothing is left to learn from, and also beside an image that has objects and no masks."""
    detector, empty = build(kind), target(ignore=everywhere)
    for targets in ([empty, empty], [empty, target([(5, 5, 30, 30)], [1])]):
        losses = detector(torch.randn(2, 3, SIZE, SIZE), targets)
        assert all(torch.isfinite(loss) for loss in losses.values())
        detector.zero_grad()
        sum(losses.values()).backward()
        gradients = [p.grad for p in detector.parameters()]
        # None would stop training on several GPUs, which waits for every weight's gradient.
        assert all(g is not None and torch.isfinite(g).all() for g in gradients)


def test_an_ignore_region_takes_its_anchors_out_of_the_first_stage():
    head, levels = head_and_levels()

    def gradient(ignore) -> torch.Tensor:
        truth = [{"boxes": torch.tensor([[4.0, 4, 24, 24]]), "ignore": torch.tensor(ignore).reshape(-1, 4)}]
        features, images = {str(i): level for i, level in enumerate(levels)}, _Images()
        _, losses = head.proposals.train()(images, features, truth)
        return torch.autograd.grad(sum(losses.values()), levels)[0].abs().sum(dim=(0, 1))

    torch.manual_seed(1)
    everything, half = gradient([]), gradient([32.0, 0, 64, 64])
    # Cells of 4 px: those from column 9 on see only anchors whose centre, column 8 and beyond, is ignored.
    assert everything[:, 9:].sum() > 0 and half[:, :8].sum() > 0
    assert half[:, 9:].sum() == 0


class _Images:
    image_sizes = [(SIZE, SIZE)]


def test_an_ignore_region_takes_its_proposals_out_of_the_second_stage():
    head, _ = head_and_levels()
    corners = torch.rand(500, 2) * 48
    proposals = [torch.cat([corners, corners + 4 + torch.rand(500, 2) * 12], dim=1)]
    box, region = torch.tensor([[4.0, 4, 24, 24]]), torch.tensor([[0.0, 0, 64, 40]])

    def sampled(ignore) -> tuple[torch.Tensor, torch.Tensor]:
        truth = {"boxes": box, "labels": torch.tensor([1]), "ignore": ignore, "masks": None}
        places, _, labels, _ = head.regions.select_training_samples(proposals, [truth])
        centres = (places[0][:, :2] + places[0][:, 2:]) / 2
        in_object = ((centres >= 4) & (centres <= 24)).all(dim=1)
        return ((centres[:, 1] <= 40) & ~in_object), labels[0]

    outside, _ = sampled(torch.zeros(0, 4))
    assert outside.any()
    outside, labels = sampled(region)
    assert not outside.any()
    assert (labels == 0).any() and (labels == 1).any()  # around the region, and the object within it


def test_an_object_between_the_anchors_keeps_its_best_one_in_an_ignore_region():
    head, levels = head_and_levels()
    anchors = head.proposals.anchor_generator(_Images(), levels)
    truth = {"boxes": torch.tensor([[21.0, 21, 23, 23]]), "ignore": torch.tensor([[0.0, 0, 64, 64]])}
    labels, _ = head.proposals.assign_targets_to_anchors(anchors, [truth])
    assert (labels[0] == 1).any() and not (labels[0] == 0).any()


def test_regions_are_read_from_torchvisions_levels_for_torchvisions_strides():
    """And from the right places for strides that it does not know: two levels alike, a level between powers of two."""
    torch.manual_seed(0)
    levels = {str(i): torch.randn(1, 4, 512 // s, 512 // s) for i, s in enumerate((4, 8, 16, 32))}
    corners = torch.rand(60, 2) * 60
    boxes = [torch.cat([corners, corners + 5 + torch.rand(60, 2) * 440], dim=1)]
    theirs = MultiScaleRoIAlign(list(levels), 7, sampling_ratio=2)(levels, boxes, [(512, 512)])
    torch.testing.assert_close(_pool(list(levels), (4, 8, 16, 32), 7)(levels, boxes, [(512, 512)]), theirs)

    for strides in ((8, 8, 16), (6, 12)):
        ramps = {str(i): ((torch.arange(480 // s) + 0.5) * s).expand(1, 1, 480 // s, -1) for i, s in enumerate(strides)}
        found = _pool(list(ramps), strides, 7)(ramps, [torch.tensor([[100.0, 100, 380, 380]])], [(480, 480)])
        # torchvision's RoIAlign takes a cell's corner for its centre: half a cell off, 4 to 8 px here.
        assert abs(found.mean().item() - 240) <= strides[-1] / 2 + 1


def test_anchors_lie_at_the_strides_where_a_side_was_rounded_up():
    head = TwoStageHead(HeadSettings("fasterrcnn", 16, 1), 3, (16, 64))
    levels = [torch.zeros(1, 16, 6, 6), torch.zeros(1, 16, 2, 2)]  # 96 px are 1.5 cells of 64
    anchors = head.proposals.anchor_generator(_Images(), levels)[0]
    centres = ((anchors[:, :2] + anchors[:, 2:]) / 2)[36 * 6 :]
    assert {tuple(c) for c in centres.tolist()} == {(0, 0), (64, 0), (0, 64), (64, 64)}


def test_masks_are_learned_from_the_images_that_have_them():
    head, levels = head_and_levels("maskrcnn")
    levels = [level.detach().repeat(2, 1, 1, 1) for level in levels]
    square = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    square[:, 8:40, 8:40] = True
    masked = target([(8, 8, 40, 40)], [1], masks=square)
    bare = dataclasses.replace(masked, masks=None)

    def mask_loss(*targets) -> float:
        torch.manual_seed(0)
        return head.loss(levels, (SIZE, SIZE), targets)["loss_mask"].item()

    assert mask_loss(bare, bare) == 0
    assert mask_loss(masked, bare) > 0 and mask_loss(bare, masked) > 0
    other = dataclasses.replace(masked, masks=~square)
    assert mask_loss(masked, bare) != mask_loss(other, bare)


def test_a_detector_learns_two_pictures_and_their_masks_by_heart():
    detector = build("maskrcnn")
    pixels, masks = torch.zeros(2, 3, SIZE, SIZE), torch.zeros(2, 1, SIZE, SIZE, dtype=torch.bool)
    masks[0, 0, 10:40, 8:22] = masks[0, 0, 30:40, 8:36] = True  # an L
    masks[1, 0, 20:44, 24:56] = True
    pixels[0, 0][masks[0, 0]] = 1.0
    pixels[1, 2][masks[1, 0]] = 1.0
    targets = [
        target([(8, 10, 36, 40)], [0], masks=masks[0]),
        target([(24, 20, 56, 44)], [2], masks=masks[1]),
    ]
    every = learn_by_heart(detector, pixels, targets, rate=2e-3, steps=75)
    for found, truth in zip(every, targets, strict=True):
        both = (found.masks[0] & truth.masks[0]).sum() / (found.masks[0] | truth.masks[0]).sum()
        assert both > 0.75


def test_losses_and_detections_under_bfloat16_autocast():
    detector = build("maskrcnn")
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector(torch.randn(1, 3, SIZE, SIZE), [target([(5, 5, 30, 30)], [1])])
        found = detector.detect(torch.randn(1, 3, SIZE, SIZE))[0]
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert found.boxes_xyxy.dtype == found.scores.dtype == torch.float32
    assert not torch.equal(found.boxes_xyxy, found.boxes_xyxy.bfloat16().float())
