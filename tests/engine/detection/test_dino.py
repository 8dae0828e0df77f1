import dataclasses

import pytest
import torch
from by_heart import learn_by_heart

from engine.detection.detector import ConvBackbone, Detector, Reader
from engine.detection.heads import HeadSettings, build_head
from engine.detection.heads.dino.denoising import denoising_queries
from engine.detection.heads.dino.matching import Truths, match
from engine.detection.targets import Target
from engine.errors import ConfigError
from engine.sections import DetrSettings

SIZE, WIDTH, CLASSES, STRIDES = 64, 32, 3, (8, 16, 32)
SMALL = DetrSettings(
    queries=30, encoder_layers=1, decoder_layers=2, attention_heads=4, feedforward=32, denoising_queries=12
)


def build(detr: DetrSettings = SMALL) -> torch.nn.Module:
    torch.manual_seed(0)
    head = build_head(HeadSettings("dino", WIDTH, detr=detr), CLASSES, STRIDES)
    for module in (head.decoder, head.selection):  # apart from the start, where every box head gives zero
        torch.nn.init.normal_(module.box_head.layers[-1].weight, std=0.2)
        torch.nn.init.normal_(module.class_head.bias, std=0.5)
    return head


def levels(batch: int, height: int = SIZE, width: int = SIZE) -> list[torch.Tensor]:
    return [torch.randn(batch, WIDTH, height // s, width // s) for s in STRIDES]


def target(boxes=(), labels=(), ignore=()) -> Target:
    return Target(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(ignore, dtype=torch.float32).reshape(-1, 4),
    )


TWO = [target([(4, 4, 24, 24), (30, 10, 60, 50)], [0, 2]), target([(8, 30, 40, 60)], [1])]


@pytest.mark.parametrize("training", [True, False])
def test_boxes_of_a_batch_are_those_of_each_image_alone(training):
    head = build().train(training)
    maps = levels(3, SIZE, SIZE + 32)
    for i, found in enumerate(head.detect(maps, (SIZE, SIZE + 32))):
        alone = head.detect([m[i : i + 1] for m in maps], (SIZE, SIZE + 32))[0]
        torch.testing.assert_close(found.scores, alone.scores, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.boxes_xyxy, alone.boxes_xyxy, atol=1e-3, rtol=1e-4)
        assert len(found.scores) > 10 and (found.scores[:-1] >= found.scores[1:]).all()
        assert (found.boxes_xyxy >= 0).all() and (found.scores >= 0.05).all()
        assert (found.boxes_xyxy[:, 2] <= SIZE + 32).all() and (found.boxes_xyxy[:, 3] <= SIZE).all()


def test_more_queries_than_cells_are_as_many_as_there_are_cells():
    head = build(dataclasses.replace(SMALL, queries=200))
    maps = levels(2)
    assert head.predict(maps)[0].shape == (2, 64 + 16 + 4, CLASSES)
    assert all(torch.isfinite(loss) for loss in head.loss(maps, (SIZE, SIZE), TWO).values())


def test_images_without_objects_give_a_finite_loss_and_every_weight_a_gradient():
    head = build()
    losses = head.loss(levels(2), (SIZE, SIZE), [target(), target()])
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses["classification"] > 0 and losses["l1"] == 0 and losses["denoising_classification"] == 0
    sum(losses.values()).backward()
    missing = [name for name, p in head.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not missing  # several processes wait for the gradient of every weight


def test_losses_are_finite_under_bfloat16_and_near_those_of_float32():
    head, maps = build(), levels(2)
    torch.manual_seed(1)
    exact = head.loss(maps, (SIZE, SIZE), TWO)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        rough = head.loss(maps, (SIZE, SIZE), TWO)
    sum(rough.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())
    for name, loss in exact.items():
        assert rough[name].dtype == torch.float32
        assert rough[name].item() == pytest.approx(loss.item(), rel=0.1), name


def test_equal_random_states_give_equal_losses():
    head, maps = build(), levels(2)

    def loss(seed: int) -> dict[str, float]:
        torch.manual_seed(seed)
        return {name: value.item() for name, value in head.loss(maps, (SIZE, SIZE), TWO).items()}

    assert loss(1) == loss(1)
    other = loss(2)
    assert other["denoising_l1"] != loss(1)["denoising_l1"] and other["l1"] == pytest.approx(loss(1)["l1"], rel=1e-4)


@pytest.mark.parametrize("name", ["classification", "auxiliary_classification", "encoder_classification"])
def test_an_ignore_region_takes_unmatched_queries_out_of_the_loss(name):
    head, maps = build(dataclasses.replace(SMALL, denoising_queries=0)), levels(1)

    def classification(ignore) -> float:
        return head.loss(maps, (SIZE, SIZE), [target([(4, 4, 24, 24)], [0], ignore)])[name].item()

    everything, half, nothing = classification([]), classification([(0, 32, 64, 64)]), classification([(0, 0, 64, 64)])
    assert everything > half > nothing
    # What is matched to the object, or lies in it, counts, whatever is ignored around it.
    assert nothing > 0


def test_matched_queries_count_inside_an_ignore_region():
    """The one object is far from every prediction: all that is left of the loss is that of the query it is given."""
    head, maps = build(dataclasses.replace(SMALL, queries=1, denoising_queries=0)), levels(1)
    truth = [(62, 62, 63.9, 63.9)]
    plain = head.loss(maps, (SIZE, SIZE), [target(truth, [0])])
    ignoring = head.loss(maps, (SIZE, SIZE), [target(truth, [0], [(0, 0, 64, 64)])])
    assert plain["classification"].item() == ignoring["classification"].item() > 0


def test_queries_that_are_used_at_inference_see_nothing_of_the_denoising_part():
    head, maps = build(), levels(2)
    memory, shapes = head.encoder(maps)
    chosen = head.selection(memory, shapes)
    noisy = denoising_queries(Truths.of(TWO, (SIZE, SIZE)), head.label_embed, head.settings)
    count = chosen.content.shape[1]
    content = torch.cat((noisy.content, chosen.content), dim=1).requires_grad_()
    anchors = torch.cat((noisy.anchors, chosen.anchors), dim=1).requires_grad_()
    logits, boxes = head.decoder(content, anchors, memory, shapes, noisy.hidden(count))
    alone = head.predict(maps)
    torch.testing.assert_close(logits[-1][:, noisy.count :], alone[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(boxes[-1][:, noisy.count :], alone[1], atol=1e-5, rtol=1e-4)
    for predicted in (logits[-1], boxes[-1]):
        of_content, of_anchors = torch.autograd.grad(
            predicted[:, noisy.count :].square().sum(), (content, anchors), retain_graph=True, allow_unused=True
        )
        assert of_content[:, noisy.count :].abs().sum() > 0
        assert of_content[:, : noisy.count].abs().sum() == 0
        assert of_anchors is None or of_anchors[:, : noisy.count].abs().sum() == 0
    # Nor does a group see another.
    size = noisy.count // noisy.groups
    (of_content,) = torch.autograd.grad(logits[-1][:, :size].square().sum(), content)
    assert of_content[:, :size].abs().sum() > 0 and of_content[:, noisy.count :].abs().sum() > 0
    assert noisy.groups > 1 and of_content[:, size : noisy.count].abs().sum() == 0


def test_denoising_queries_stand_near_their_objects_and_negatives_further_off():
    head = build(dataclasses.replace(SMALL, denoising_queries=400, label_noise=0.0, box_noise=0.5))
    truths = Truths.of(TWO, (SIZE, SIZE))
    noisy = denoising_queries(truths, head.label_embed, head.settings)
    assert (noisy.groups, noisy.count) == (200, 800)  # two objects in the fuller image, each twice a group
    boxes = noisy.anchors.sigmoid()
    pairs = noisy.matches
    truth = truths.boxes[pairs.rows]
    moved = (boxes[pairs.images, pairs.queries] - truth).abs() / truth[:, 2:].repeat(1, 2)
    assert moved[:, :2].max() <= 0.26 and moved[:, 2:].max() <= 0.51
    negatives = (boxes[pairs.images, pairs.queries + 2] - truth).abs() / truth[:, 2:].repeat(1, 2)
    assert negatives[:, 2:].mean() > moved[:, 2:].mean()
    labels = head.label_embed.weight[truths.labels[pairs.rows]]
    torch.testing.assert_close(noisy.content[pairs.images, pairs.queries], labels)


def test_label_noise_changes_half_of_its_share():
    head = build(dataclasses.replace(SMALL, denoising_queries=4000, label_noise=0.5, box_noise=0.0))
    truths = Truths.of(TWO, (SIZE, SIZE))
    noisy = denoising_queries(truths, head.label_embed, head.settings)
    pairs = noisy.matches
    kept = noisy.content[pairs.images, pairs.queries] == head.label_embed.weight[truths.labels[pairs.rows]]
    changed = 1 - kept.all(-1).float().mean().item()
    assert changed == pytest.approx(0.25 * (1 - 1 / CLASSES), abs=0.02)  # a random label may be the true one


def test_the_assignment_gives_each_object_its_own_query_in_every_layer():
    truths = Truths.of(TWO, (SIZE, SIZE))
    boxes = torch.rand(2, 2, 5, 4) * 0.2 + 0.1
    boxes[0, 0, 3], boxes[0, 0, 1], boxes[0, 1, 4] = truths.boxes
    boxes[1, 0, 0], boxes[1, 0, 2], boxes[1, 1, 1] = truths.boxes
    found = match(torch.zeros(2, 2, 5, CLASSES), boxes, truths)
    table = torch.stack((found.layers, found.images, found.queries, found.rows), dim=1).tolist()
    assert sorted(table) == [[0, 0, 1, 1], [0, 0, 3, 0], [0, 1, 4, 2], [1, 0, 0, 0], [1, 0, 2, 1], [1, 1, 1, 2]]


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ConfigError, match=r"attention_heads \(5\).*\(32\)"):
        build(dataclasses.replace(SMALL, attention_heads=5))


def test_a_detector_learns_two_pictures_by_heart():
    torch.manual_seed(0)
    backbone = ConvBackbone(16)
    settings = HeadSettings("dino", WIDTH, detr=dataclasses.replace(SMALL, queries=20))
    detector = Detector(backbone, Reader(settings, CLASSES, backbone.channels, backbone.strides))
    pixels = torch.zeros(2, 3, SIZE, SIZE)
    pixels[0, 0, 10:40, 8:36] = 1.0
    pixels[1, 2, 20:44, 24:56] = 1.0
    targets = [target([(8, 10, 36, 40)], [0]), target([(24, 20, 56, 44)], [2])]
    learn_by_heart(detector, pixels, targets, rate=3e-3, steps=150)
