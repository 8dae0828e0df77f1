import pytest
import torch
from by_heart import learn_by_heart
from safetensors.torch import load, save

from engine.detection.detector import ConvBackbone, Detector, Reader
from engine.detection.heads import HeadSettings
from engine.detection.targets import MAX_BOXES, SCORE_FLOOR, Target
from engine.errors import ConfigError, ModelError
from engine.sections import DetrSettings

SIZE = 64
DETR = DetrSettings(
    queries=30,
    encoder_layers=1,
    decoder_layers=2,
    attention_heads=4,
    feedforward=64,
    sampling_points=2,
    denoising_queries=8,
)


def build(extra_levels: int = 0, detr: DetrSettings = DETR) -> Detector:
    torch.manual_seed(0)
    backbone = ConvBackbone(16)
    settings = HeadSettings("rtdetr", 32, detr=detr)
    return Detector(backbone, Reader(settings, 3, backbone.channels, backbone.strides, extra_levels))


def target(boxes=(), labels=(), ignore=()) -> Target:
    return Target(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(ignore, dtype=torch.float32).reshape(-1, 4),
    )


def many_found(detector: Detector) -> Detector:
    """With class scores spread around a half, so that boxes pass the floor."""
    for layer in detector.reader.head.model.decoder.class_embed:
        torch.nn.init.normal_(layer.weight, std=0.3)
        torch.nn.init.zeros_(layer.bias)
    return detector


# 56 x 104 px: levels of 14 x 26, 7 x 13, 4 x 7 and 2 x 4 cells, which do not double.
@pytest.mark.parametrize("size, extra_levels", [((SIZE, SIZE + 32), 0), ((SIZE, SIZE), 1), ((56, 104), 1)])
def test_boxes_of_a_batch_are_those_of_each_image_alone(size, extra_levels):
    detector = many_found(build(extra_levels)).eval()
    pixels = torch.randn(3, 3, *size)
    for i, found in enumerate(detector.detect(pixels)):
        alone = detector.detect(pixels[i : i + 1])[0]
        torch.testing.assert_close(found.scores, alone.scores, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.boxes_xyxy, alone.boxes_xyxy, atol=1e-3, rtol=1e-4)
        assert 10 < len(found.scores) <= MAX_BOXES and found.scores[-1] >= SCORE_FLOOR
        assert (found.scores[:-1] >= found.scores[1:]).all()
        assert (found.boxes_xyxy[:, 2] <= size[1]).all() and (found.boxes_xyxy[:, 3] <= size[0]).all()
        assert (found.boxes_xyxy >= 0).all() and (found.boxes_xyxy[:, 2:] > found.boxes_xyxy[:, :2]).all()


def test_boxes_do_not_depend_on_the_mode_of_the_head():
    detector, pixels = many_found(build()).eval(), torch.randn(2, 3, SIZE, SIZE)
    before = detector.detect(pixels)
    detector.reader.head.train()
    after = detector.detect(pixels)
    assert detector.reader.head.training and detector.reader.head.model.encoder.training
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one.boxes_xyxy, other.boxes_xyxy, rtol=0, atol=0)


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("objects", [([], []), ([(5, 5, 30, 30), (20, 8, 60, 90)], [1, 0])])
def test_losses_and_gradients_are_finite(objects, bfloat16):
    detector = build(extra_levels=1)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        losses = detector(torch.randn(2, 3, SIZE + 32, SIZE), [target(), target(*objects)])
    assert set(losses) == {"classification", "box_l1", "box_giou"}
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters() if p.grad is not None)


def test_every_weight_of_the_head_learns():
    head = build().reader.head
    levels = [torch.randn(2, 32, n, n) for n in (16, 8, 4)]
    truth = [target([(5, 5, 30, 30)], [1]), target([(8, 20, 50, 60)], [2])]
    # The last layers for boxes start at zero and pass nothing down in the first step.
    for boxes in (head.model.enc_bbox_head, *head.model.decoder.bbox_embed):
        torch.nn.init.normal_(boxes.layers[-1].weight, std=0.1)
    sum(head.loss(levels, (SIZE, SIZE), truth).values()).backward()
    assert [name for name, p in head.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("denoising_queries", [0, 8])
def test_an_ignore_region_takes_its_queries_out_of_the_classification_loss(denoising_queries):
    detr = DetrSettings(**{**vars(DETR), "denoising_queries": denoising_queries})
    detector, pixels = build(detr=detr), torch.randn(1, 3, SIZE, SIZE)

    def losses(ignore) -> dict[str, float]:
        torch.manual_seed(0)
        found = detector(pixels, [target([(4, 4, 24, 24)], [0], ignore)])
        return {name: loss.item() for name, loss in found.items()}

    everything, half, nothing = losses([]), losses([(32, 0, 64, 64)]), losses([(0, 0, 64, 64)])
    assert everything["classification"] > half["classification"] > nothing["classification"]
    # Inside the object itself the object counts, whatever is ignored around it.
    assert nothing["classification"] > 0
    assert everything["box_l1"] == nothing["box_l1"]


def test_the_same_seed_gives_the_same_loss():
    detector, pixels = build(), torch.randn(2, 3, SIZE, SIZE)
    truth = [target([(5, 5, 30, 30)], [1]), target([(8, 20, 50, 60)], [2])]

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return sum(detector(pixels, truth).values()).item()

    assert loss(1) == loss(1) != loss(2)  # the denoising queries are random


def test_more_queries_than_cells_are_as_many_as_there_are_cells():
    detector = many_found(build(detr=DetrSettings(**{**vars(DETR), "queries": 500})))
    head = detector.reader.head
    detector(torch.randn(1, 3, 32, 32), [target([(5, 5, 30, 30)], [1])])
    assert head.model.config.num_queries == 64 + 16 + 4
    detector.eval().detect(torch.randn(1, 3, 128, 128))  # and not fewer than wanted where there are more
    assert head.model.config.num_queries == 500


def test_weights_go_through_a_file_of_plain_tensors():
    detector, other = many_found(build()).eval(), build().eval()
    other.load_state_dict(load(save(detector.state_dict())))
    pixels = torch.randn(1, 3, SIZE, SIZE)
    torch.testing.assert_close(detector.detect(pixels)[0].scores, other.detect(pixels)[0].scores, rtol=0, atol=0)


def test_what_cannot_be_built_is_said():
    with pytest.raises(ConfigError, match="multiple of 4 and of the 3 attention heads"):
        build(detr=DetrSettings(**{**vars(DETR), "attention_heads": 3}))
    with pytest.raises(ModelError, match=r"strides double.*\[4, 16\]"):
        Reader(HeadSettings("rtdetr", 32, detr=DETR), 3, [8, 8], [4, 16])


def test_a_detector_learns_two_pictures_by_heart():
    """Boxes come back where they were put: a frame that is not square, whose levels do not double."""
    height, width = 56, 72
    detector = build()
    pixels = torch.zeros(2, 3, height, width)
    pixels[0, 0, 10:40, 8:36] = 1.0
    pixels[1, 2, 20:44, 34:66] = 1.0
    targets = [target([(8, 10, 36, 40)], [0]), target([(34, 20, 66, 44)], [2])]
    learn_by_heart(detector, pixels, targets, rate=2e-3, steps=90)
