"""The head, and the whole detectors, without detectron2 (here), and with it: `-m detectron2`, where it is installed."""

import dataclasses
import sys

import pytest
import torch
from by_heart import learn_by_heart

from engine.adapter.adapter import LdmBackbone
from engine.config import load_settings
from engine.detection.build import BuiltDetector, build_detector
from engine.detection.detector import ConvBackbone, Detector, Reader
from engine.detection.heads import HeadSettings
from engine.detection.targets import MAX_BOXES, SCORE_FLOOR, Target
from engine.errors import ModelError

SIZE = 64
RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
LONGER = "COCO-Detection/retinanet_R_50_FPN_3x.yaml"  # overrides tuples of its base
FASTER = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
FCOS = "COCO-Detection/fcos_R_50_FPN_1x.py"
CASCADE = "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml"
CLASSIFICATION = {RETINANET: "loss_cls", FASTER: "loss_rpn_cls", FCOS: "loss_fcos_cls"}


def build(config: str) -> Detector:
    torch.manual_seed(0)
    backbone = ConvBackbone(16)
    settings = HeadSettings(f"detectron2:{config}", 32, 1)
    return Detector(backbone, Reader(settings, 3, backbone.channels, backbone.strides))


def target(boxes=(), labels=(), ignore=()) -> Target:
    return Target(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(ignore, dtype=torch.float32).reshape(-1, 4),
    )


def test_without_detectron2_one_line_says_how_to_get_it(monkeypatch):
    module = "engine.detection.heads.detectron2"
    monkeypatch.setitem(sys.modules, "detectron2", None)
    monkeypatch.setitem(sys.modules, module, None)  # so that what is imported now is forgotten after the test
    del sys.modules[module]
    with pytest.raises(ModelError, match=r"^.*COCO-Detection/retina.*uv sync --extra detectron2$"):
        build(RETINANET)


def whole(config: str) -> BuiltDetector:
    torch.manual_seed(0)
    settings = dataclasses.replace(load_settings().detector, name=f"detectron2:{config}", resolution=SIZE)
    return build_detector(settings, 3)


def test_without_detectron2_a_whole_detector_says_the_same(monkeypatch):
    for module in ("engine.detection.heads.detectron2", "engine.detection.zoo.detectron2_models"):
        monkeypatch.setitem(sys.modules, module, None)
        del sys.modules[module]
    monkeypatch.setitem(sys.modules, "detectron2", None)
    with pytest.raises(ModelError, match=r"^detectron2:COCO-Detection/fcos.*uv sync --extra detectron2$"):
        whole(FCOS)


@pytest.fixture
def needs_detectron2():
    pytest.importorskip("detectron2", reason="detectron2 is not installed: uv sync --extra detectron2")


@pytest.mark.detectron2
@pytest.mark.usefixtures("needs_detectron2")
class TestWithDetectron2:
    @pytest.mark.parametrize("config", [RETINANET, FASTER, FCOS, CASCADE])
    def test_boxes_of_a_batch_are_those_of_each_image_alone(self, config):
        detector = build(config).eval()
        for name, p in detector.reader.head.named_parameters():  # so that some boxes pass the floor
            if "cls_score" in name:
                torch.nn.init.normal_(p, std=0.3)
        pixels = torch.randn(3, 3, SIZE, SIZE + 32)
        together = detector.detect(pixels)
        detector.reader.head.train()
        for i, found in enumerate(together):
            alone = detector.detect(pixels[i : i + 1])[0]
            assert detector.reader.head.model.training  # as the caller left it
            torch.testing.assert_close(found.scores, alone.scores, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(found.boxes_xyxy, alone.boxes_xyxy, atol=1e-2, rtol=1e-4)
            assert 5 < len(found.scores) <= MAX_BOXES and found.scores[-1] >= SCORE_FLOOR
            assert (found.scores[:-1] >= found.scores[1:]).all() and (found.boxes_xyxy >= 0).all()
            assert (found.boxes_xyxy[:, 2] <= SIZE + 32).all() and (found.boxes_xyxy[:, 3] <= SIZE).all()

    @pytest.mark.parametrize("bfloat16", [False, True])
    @pytest.mark.parametrize("config", [RETINANET, FASTER, FCOS, CASCADE])
    def test_losses_are_finite(self, config, bfloat16):
        detector, pixels = build(config), torch.randn(2, 3, SIZE, SIZE + 32)
        everywhere = [(0, 0, SIZE + 32, SIZE)]
        for truths in (
            [target(), target()],
            [target(), target([(5, 5, 30, 30)], [1])],
            [target(ignore=everywhere), target(ignore=everywhere)],
        ):
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                losses = detector(pixels, truths)
            assert all(torch.isfinite(loss) for loss in losses.values())
            sum(losses.values()).backward()
        assert all(torch.isfinite(p.grad).all() for p in detector.parameters() if p.grad is not None)

    @pytest.mark.parametrize("config", [RETINANET, FASTER, FCOS])
    def test_an_ignore_region_takes_its_places_out_of_the_loss(self, config):
        pixels = torch.randn(1, 3, SIZE, SIZE)

        def losses(ignore) -> dict[str, float]:
            torch.manual_seed(0)  # R-CNNs sample their places
            found = build(config)(pixels, [target([(4, 4, 24, 24)], [0], ignore)])
            return {name: loss.item() for name, loss in found.items()}

        name = CLASSIFICATION[config]
        everything, half, nothing = (losses(i)[name] for i in ([], [(32, 0, 64, 64)], [(0, 0, 64, 64)]))
        assert everything > half > nothing > 0

    def test_regions_are_not_sampled_in_an_ignore_region(self):
        head = build(FASTER).reader.head
        levels, seen = [torch.randn(1, 32, n, n) for n in (16, 8, 4)], []
        forward = head.model.roi_heads.forward

        def watch(images, features, proposals, targets):
            seen.extend(p.proposal_boxes.get_centers() for p in proposals)
            return forward(images, features, proposals, targets)

        head.model.roi_heads.forward = watch
        head.loss(levels, (SIZE, SIZE), [target([(4, 4, 24, 24)], [0], [(0, 0, SIZE, SIZE)])])
        (centres,) = seen
        assert len(centres) and ((centres >= 4) & (centres <= 24)).all()

    def test_what_a_dense_loss_remembers_is_saved(self):
        detector, pixels = build(LONGER), torch.randn(1, 3, SIZE, SIZE)
        truths = [target([(4, 4, 24, 24)], [0])]
        detector(pixels, truths)
        other = build(LONGER)
        other.load_state_dict(detector.state_dict())
        assert sum(other(pixels, truths).values()) == sum(detector(pixels, truths).values())

    @pytest.mark.parametrize("name", ["no/such.yaml", "../../setup.py", "COCO-Detection", ""])
    def test_an_unknown_config_says_how_to_name_one(self, name):
        with pytest.raises(
            ModelError, match="There is no detectron2 config.*COCO-Detection/retinanet_R_50_FPN_1x.yaml"
        ):
            build(name)

    @pytest.mark.parametrize(
        "name", ["COCO-Detection/faster_rcnn_R_50_C4_1x.yaml", "COCO-Detection/rpn_R_50_FPN_1x.yaml"]
    )
    def test_a_config_that_does_not_fit_is_said(self, name):
        with pytest.raises(ModelError, match="Name one of its model zoo"):
            build(name)

    def test_a_yaml_of_ones_own_is_read_and_not_run(self, tmp_path):
        base, own = tmp_path / "base.yaml", tmp_path / "own.yaml"
        written = tmp_path / "written"
        base.write_text(
            "MODEL:\n  META_ARCHITECTURE: RetinaNet\n  RETINANET: {NORM: GN, PRIOR_PROB: 0.1}\n"
            f"  ANCHOR_GENERATOR: {{SIZES: !!python/object/apply:os.system ['touch {written}']}}\n"
        )
        own.write_text("_BASE_: base.yaml\nMODEL: {RETINANET: {PRIOR_PROB: 0.2}}\n")
        head = build(str(own)).reader.head.model.head
        assert not written.exists()
        assert isinstance(head.cls_subnet[1], torch.nn.GroupNorm)
        torch.testing.assert_close(head.cls_score.bias.sigmoid().mean(), torch.tensor(0.2))

    def test_the_diffusion_model_carries_a_detectron2_model(self, ldm_folder):
        from detectron2.modeling.backbone import FPN

        from engine.detection.heads.detectron2 import LdmAsBackbone
        from engine.ldm.diffusion import load_ldm

        ldm = load_ldm(str(ldm_folder), device="cpu")
        backbone = LdmAsBackbone(LdmBackbone(ldm, 1)).eval()
        shapes = backbone.output_shape()
        levels = FPN(backbone, list(shapes), 8)(torch.zeros(1, 3, SIZE, SIZE))
        assert [SIZE // s.stride for s in shapes.values()] == [level.shape[-1] for level in levels.values()]

    @pytest.mark.parametrize("config, rate, steps", [(RETINANET, 3e-3, 80), (FASTER, 1e-3, 100)])
    def test_a_detector_learns_two_pictures_by_heart(self, config, rate, steps):
        detector = build(config)
        pixels = torch.zeros(2, 3, SIZE, SIZE)
        pixels[0, 0, 10:40, 8:36] = 1.0
        pixels[1, 2, 20:44, 24:56] = 1.0
        targets = [target([(8, 10, 36, 40)], [0]), target([(24, 20, 56, 44)], [2])]
        learn_by_heart(detector, pixels, targets, rate=rate, steps=steps)

    def test_a_whole_retinanet_has_the_anchors_that_its_config_computes(self):
        from detectron2.model_zoo import get_config

        sizes = get_config(RETINANET).MODEL.ANCHOR_GENERATOR.SIZES  # by running the tag
        generator = whole(RETINANET).module.model.anchor_generator
        for cells, mine in zip(sizes, generator.cell_anchors, strict=True):
            areas = (mine[:, 2:] - mine[:, :2]).prod(1)
            assert sorted(set(areas.sqrt().round(decimals=2).tolist())) == pytest.approx(cells, abs=0.02)

    @pytest.mark.parametrize("config", [RETINANET, FASTER, FCOS, CASCADE])
    def test_a_whole_detector_trains_down_to_its_backbone_and_honours_ignore_regions(self, config):
        detector, pixels = whole(config).module.train(), torch.rand(2, 3, SIZE, SIZE) * 2 - 1
        losses = detector(pixels, [target([(8, 8, 40, 40)], [2]), target()])
        assert all(torch.isfinite(value) for value in losses.values())
        sum(losses.values()).backward()
        assert detector.model.backbone.bottom_up.stem.conv1.weight.grad.abs().sum() > 0
        everywhere = [(0, 0, SIZE, SIZE)]

        def classifying(ignore) -> float:
            torch.manual_seed(1)
            return detector(pixels, [target(ignore=ignore)] * 2)[CLASSIFICATION.get(config, "loss_rpn_cls")].item()

        assert classifying(everywhere) < 0.1 * classifying([])
        for found in detector.eval().detect(pixels):
            assert (found.boxes_xyxy >= 0).all() and (found.boxes_xyxy <= SIZE).all()
