"""Every detector by name, at the smallest size that it comes in: it trains, predicts, and honours ignore regions."""

import dataclasses

import pytest
import torch
from by_heart import learn_by_heart
from torch import nn

from engine.config import load_settings
from engine.data.dataset import read_dataset
from engine.detection.build import BuiltDetector, build_detector
from engine.detection.samples import BatchSource, Source
from engine.detection.schedule import OptimisationSettings
from engine.detection.targets import Target
from engine.detection.training import fit
from engine.errors import ConfigError
from engine.sections import DETECTORS, DetectorSettings

TRANSFORMERS = ("rtdetr_v2", "d_fine", "deformable_detr", "lw_detr", "rf_detr")
TORCHVISION = tuple(name for name in DETECTORS if name.endswith("_fpn"))
CLASSIFYING = ("classification", "encoder_classification", "loss_classifier", "loss_objectness")


def settings_of(name: str, **changes) -> DetectorSettings:
    size = "tiny" if name in TRANSFORMERS or "dino" in name or "rtdetr" in name else "full"
    changes = {"resolution": 64, "width": 32, "size": size, **changes}
    return dataclasses.replace(load_settings().detector, name=name, **changes)


def target(boxes=(), labels=(), ignore=()) -> Target:
    def as_boxes(rows):
        return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)

    return Target(as_boxes(boxes), torch.tensor(labels, dtype=torch.int64), as_boxes(ignore))


@pytest.fixture(scope="module", params=[*DETECTORS, "small:rtdetr"])
def built(request) -> BuiltDetector:
    torch.manual_seed(0)
    return build_detector(settings_of(request.param), num_classes=3)


def losses_of(built: BuiltDetector, *targets: Target) -> dict[str, torch.Tensor]:
    width, height = built.frame.size_of(96, 64)
    torch.manual_seed(1)
    return built.module.train()(torch.rand(len(targets), 3, height, width) * 2 - 1, targets)


def test_it_trains_down_to_the_first_weights_and_predicts_in_its_inputs_pixels(built):
    losses = losses_of(built, target([(8, 8, 40, 40), (20, 4, 60, 30)], [2, 0]), target())
    loss = sum(losses.values())
    assert torch.isfinite(loss) and loss > 0
    loss.backward()
    first = next(part for part in built.module.modules() if isinstance(part, nn.Conv2d))
    assert first.weight.grad.abs().sum() > 0
    built.module.zero_grad()
    width, height = built.frame.size_of(640, 480)
    for found in built.module.eval().detect(torch.rand(2, 3, height, width) * 2 - 1):
        assert ((found.labels >= 0) & (found.labels < 3)).all() and (found.boxes_xyxy >= 0).all()
        assert (found.boxes_xyxy[:, 2] <= width).all() and (found.boxes_xyxy[:, 3] <= height).all()
        assert (found.scores[:-1] >= found.scores[1:]).all()


def test_what_is_ignored_teaches_nothing_and_an_object_in_it_is_learned(built):
    def classifying(*targets: Target) -> float:
        found = losses_of(built, *targets)
        assert all(torch.isfinite(value) for value in found.values())
        return sum(found[name].item() for name in CLASSIFYING if name in found)

    everywhere, box = (0, 0, 96, 64), (8, 8, 40, 40)
    background, ignored = classifying(target()), classifying(target(ignore=[everywhere]))
    # A transformer's boxes are its own: a few have their centre beyond the border, where nothing is ignored.
    assert 0 < background and ignored <= 0.1 * background
    assert classifying(target([box], [1], [everywhere])) > ignored


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, steps, options",
    [
        ("rtdetr_v2", 300, ()),
        ("d_fine", 300, ()),
        ("deformable_detr", 300, ()),
        ("lw_detr", 600, ()),
        ("rf_detr", 300, ()),
        ("dino_resnet50", 150, ()),
        ("fasterrcnn_mobilenet_v3_large_fpn", 150, ("box_batch_size_per_image=32",)),
        ("fasterrcnn_resnet50_fpn", 150, ("box_batch_size_per_image=32",)),
        ("retinanet_resnet50_fpn", 150, ()),
        ("fcos_resnet50_fpn", 150, ()),
    ],
)
def test_it_learns_two_pictures_by_heart(name, steps, options):
    torch.manual_seed(0)
    detector = build_detector(settings_of(name, resolution=96, options=options), num_classes=3)
    width, height = detector.frame.size_of(96, 96)
    pixels = torch.zeros(2, 3, height, width)
    pixels[0, 0, 10:58, 8:52] = 1.0
    pixels[1, 2, 20:74, 24:86] = 1.0
    targets = [target([(8, 10, 52, 58)], [0]), target([(24, 20, 86, 74)], [2])]
    learn_by_heart(detector.module, pixels, targets, rate=5e-4, steps=steps, within=8)


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"name": "small", "weights": "hub"}, "starts from nothing"),
        ({"name": "small", "options": ("queries=5",)}, "takes no options"),
        ({"name": "small:dino", "options": ("quires=5",)}, "no option 'quires=5'.*queries"),
        ({"name": "rtdetr_v2", "options": ("decoder_layers=many",)}, "cannot be built"),
        ({"name": "lw_detr", "options": ("num_queries=100",)}, "100 queries .* has 64"),
        ({"name": "fcos_resnet50_fpn", "size": "tiny"}, "one size"),
        ({"name": "small", "size": "tiny"}, "one size"),
        ({"name": "fcos_resnet50_fpn", "weights": "hub"}, "needs detector.revision"),
        ({"name": "fasterrcnn_mobilenet_v3_large_fpn", "weights": "hub"}, "none are known"),
    ],
)
def test_settings_that_a_detector_does_not_take_are_said(changes, problem):
    with pytest.raises(ConfigError, match=problem):
        build_detector(settings_of(**changes), 3)


def test_options_reach_the_library():
    detector = build_detector(settings_of("rtdetr_v2", options=("num_queries=17", "weight_loss_bbox=3.5")), 3)
    assert detector.module.model.config.weight_loss_bbox == 3.5
    losses_of(detector, target([(8, 8, 40, 40)], [1]))
    assert detector.module.model.config.num_queries == 17
    small = build_detector(settings_of("small:dino", options=("queries=11",)), 3).module
    assert small.reader.head.settings.queries == 11


class Stopping(BatchSource):
    """Fails at step 5 unless told not to."""

    stop = True

    def batch(self, step, part=(0, 1)):
        if self.stop and step == 5:
            raise KeyboardInterrupt
        return super().batch(step, part)


@pytest.mark.parametrize("name", ["rtdetr_v2", "deformable_detr"])
def test_a_stopped_training_ends_in_the_same_averaged_weights(name, world_folder, tmp_path):
    train = read_dataset(world_folder, "train")
    options = settings_of(
        name, steps=7, batch_size=2, save_every=3, ema_decay=0.9, schedule="cosine", augment="strong", bfloat16=False
    )
    optimisation = OptimisationSettings.of(options)
    assert (optimisation.ema_decay, optimisation.schedule, optimisation.save_every) == (0.9, "cosine", 3)

    def trained(stop: bool, state=None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        built = build_detector(options, len(train.categories))
        batches = Stopping.of(options, [Source(train)], built.frame, 0, optimisation.steps)
        batches.stop = stop
        fit(built.module, batches, optimisation, name, state=state)
        return built.module.state_dict()

    with pytest.raises(KeyboardInterrupt):
        trained(True, tmp_path / "state.safetensors")
    resumed, unbroken = trained(False, tmp_path / "state.safetensors"), trained(False)
    assert all(torch.equal(resumed[name], unbroken[name]) for name in unbroken)
