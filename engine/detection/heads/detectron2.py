"""detectron2's detectors as heads, and the diffusion model as a backbone for detectron2.

A detector is built from a config of detectron2's model zoo, or a yaml file, for our levels; its own labelling, losses,
sampling and suppression are used. Nothing is loaded: no weights, no checkpointer, no pickles, no code in yaml files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from engine.detection.heads import HeadSettings
from engine.detection.ignore import in_ignore_region
from engine.detection.targets import MAX_BOXES, SCORE_FLOOR, Detections, Target
from engine.errors import ModelError
from engine.sections import DETECTRON2

try:
    import detectron2
    from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import BACKBONE_REGISTRY, Backbone, GeneralizedRCNN, build_model
    from detectron2.modeling.meta_arch.dense_detector import DenseDetector
    from detectron2.modeling.meta_arch.fcos import FCOS
    from detectron2.modeling.postprocessing import detector_postprocess
    from detectron2.modeling.proposal_generator import RPN
    from detectron2.structures import Boxes, ImageList, Instances
    from detectron2.utils.events import EventStorage

    MISSING = None
except ImportError as error:  # the extra is not installed: the classes below cannot be used, and say so
    Backbone = RPN = nn.Module
    Instances, MISSING = object, str(error)

ANCHOR_CELLS = 4  # side of a level's smallest anchor in cells, RetinaNet's 32 px at stride 8
ZOO_WIDTH = 256  # channels of the zoo's pyramids; hidden layers keep their proportion to it
HOW = (
    f"Name one of its model zoo, such as {DETECTRON2}COCO-Detection/retinanet_R_50_FPN_1x.yaml, "
    f"{DETECTRON2}COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml or {DETECTRON2}COCO-Detection/fcos_R_50_FPN_1x.py, "
    "or the path of a yaml file of your own."
)


class Detectron2Head(nn.Module):
    """A detectron2 dense detector (RetinaNet, FCOS) or R-CNN on our levels, boxes only.

    From the config come the architecture, its losses and its sampling. Backbone, pixel statistics, number of classes,
    anchor sizes (from `ANCHOR_CELLS` cells of each level up, centred on the cells), depth of dense branches, score
    floor and number of boxes are ours; hidden layers of regions keep their proportion to the pyramid's width.

    Ignore regions are honoured: background anchors, and proposals, with their centre in one have no loss. Only the
    later stages of a cascade may move a box into one.

    Args:
        settings: kind "detectron2:CONFIG", width of every level, convs of a dense detector's branches.
        strides: pixels a cell of each level, finest first.

    Raises:
        ModelError: detectron2 is not installed; an unknown config, or one that cannot be built on these levels.
    """

    def __init__(self, settings: HeadSettings, num_classes: int, strides: Sequence[int]):
        super().__init__()

        def built(file: Path) -> nn.Module:
            return (_from_python if file.suffix == ".py" else _from_yaml)(file, settings, num_classes, strides)

        self.model = build_model_of(
            settings.kind, built, f"on levels of {settings.width} channels at strides {list(strides)}"
        )
        self.names = _names(strides)

    def loss(
        self, levels: Sequence[Tensor], image_size: tuple[int, int], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """detectron2's named losses; `levels` (B, width, h_i, w_i) finest first, `image_size` (height, width)."""
        truths = [_Truth(image_size, t) for t in targets]
        images = _images(levels, image_size)
        with _mode(self.model, training=True), EventStorage():
            try:
                if isinstance(self.model, DenseDetector):
                    return self._dense_loss(levels, images, truths)
                return self._region_loss(levels, images, truths)
            except FloatingPointError:  # detectron2's word for a diverged proposal: the training loop names the step
                return {"loss": levels[0].sum() * torch.nan}

    @torch.no_grad()
    def detect(self, levels: Sequence[Tensor], image_size: tuple[int, int]) -> list[Detections]:
        """Boxes of each image of the batch, after detectron2's suppression."""
        images, model = _images(levels, image_size), self.model
        with _mode(model, training=False):
            if isinstance(model, DenseDetector):
                found = model.forward_inference(images, list(levels), _floats(model.head(list(levels))))
            else:
                features = dict(zip(self.names, levels, strict=True))
                proposals, _ = model.proposal_generator(images, features, None)
                found, _ = model.roi_heads(images, features, proposals, None)
        found = [detector_postprocess(f, *image_size) for f in found]  # clips, and drops what is then empty
        return [Detections(f.pred_boxes.tensor, f.pred_classes, f.scores) for f in found]

    def _dense_loss(self, levels, images, truths) -> dict[str, Tensor]:
        model, levels = self.model, list(levels)
        logits, *others = _floats(model.head(levels))
        anchors = model.anchor_generator(levels)
        labels, _ = model.label_anchors(anchors, truths)
        places = Boxes.cat(anchors).tensor
        ignored = torch.stack(
            [(label == model.num_classes) & t.ignores(places) for label, t in zip(labels, truths, strict=True)]
        )
        masked = []
        for level, mine in zip(logits, ignored.split([len(a) for a in anchors], dim=1), strict=True):
            batch, _, height, width = level.shape
            mine = mine.view(batch, height, width, -1, 1).permute(0, 3, 4, 1, 2)  # as anchors x classes of a cell lie
            split = level.view(batch, mine.shape[1], -1, height, width)
            # A logit so low that it has neither loss nor gradient.
            masked.append(split.masked_fill(mine, -1e3).view_as(level))
        with torch.autocast(levels[0].device.type, enabled=False):
            return model.forward_training(images, levels, [masked, *others], truths)

    def _region_loss(self, levels, images, truths) -> dict[str, Tensor]:
        features = dict(zip(self.names, levels, strict=True))
        proposals, losses = self.model.proposal_generator(images, features, truths)
        proposals = [p[~t.ignores(p.proposal_boxes.tensor)] for p, t in zip(proposals, truths, strict=True)]
        _, others = self.model.roi_heads(images, features, proposals, truths)
        return losses | others


def build_model_of(kind: str, build: Callable[[Path], nn.Module], where: str = "") -> nn.Module:
    """The model that `build` makes of the config's file; `kind` is "detectron2:CONFIG", `where` is for messages.

    Raises:
        ModelError: detectron2 is not installed; an unknown config, or one that cannot be built or is of another kind.
    """
    if MISSING:
        raise ModelError(f"{kind} needs detectron2 ({MISSING}). Get it with: uv sync --extra detectron2")
    name = kind.removeprefix(DETECTRON2)
    file = _find(name)
    try:
        model = build(file)
    except Exception as error:  # detectron2 answers with asserts and errors of any kind
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"detectron2's {name} cannot be built {where}: {reason}. {HOW}") from error
    if not isinstance(model, DenseDetector) and type(model) is not GeneralizedRCNN:
        raise ModelError(f"{name} is a {type(model).__name__}: a dense detector or an R-CNN is needed. {HOW}")
    if isinstance(model, DenseDetector):
        # A moving average that detectron2 keeps as a plain number: as a buffer it is saved and resumed.
        model.register_buffer("loss_normalizer", torch.tensor(300.0 if isinstance(model, FCOS) else 100.0))
    return model


class _Truth(Instances):
    """An image's objects as detectron2 reads them, and its ignore regions."""

    def __init__(self, image_size: tuple[int, int], target: Target):
        super().__init__(image_size, gt_boxes=Boxes(target.boxes_xyxy), gt_classes=target.labels)
        self._target = target

    def ignores(self, places_xyxy: Tensor) -> Tensor:
        return in_ignore_region(places_xyxy, self._target.ignore_xyxy, self._target.boxes_xyxy)


class _RPN(RPN):
    def label_and_sample_anchors(self, anchors, gt_instances):
        labels, boxes = super().label_and_sample_anchors(anchors, gt_instances)
        places = Boxes.cat(anchors).tensor
        for label, truth in zip(labels, gt_instances, strict=True):
            label[(label == 0) & truth.ignores(places)] = -1
        return labels, boxes


class _Levels(Backbone):
    """What detectron2 asks of a backbone when it builds a detector for levels that come from elsewhere."""

    def __init__(self, width: int, strides: Sequence[int]):
        super().__init__()
        self.shapes = {n: ShapeSpec(channels=width, stride=s) for n, s in zip(_names(strides), strides, strict=True)}

    def forward(self, pixels):
        raise NotImplementedError("the levels are given to Detectron2Head")

    def output_shape(self):
        return self.shapes


class LdmAsBackbone(Backbone):
    """The frozen diffusion model as a backbone of any detectron2 model, its levels "tap0" ... finest first.

    It reads RGB pixels in [-1, 1]: INPUT.FORMAT "RGB", PIXEL_MEAN and PIXEL_STD 127.5. A neck such as detectron2's FPN
    belongs on top: FPN(LdmAsBackbone(LdmBackbone(ldm, timestep=1)), ["tap0", "tap1"], 256).

    Args:
        backbone: engine.adapter's LdmBackbone.
    """

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> levels (B, C_i, h_i, w_i) by name."""
        levels = self.backbone(pixels)[0 if self.backbone.stem == "none" else 1 :]
        return {f"tap{i}": level.float() for i, level in enumerate(levels)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        taps = self.backbone.ldm.taps
        return {f"tap{i}": ShapeSpec(channels=tap.channels, stride=tap.stride) for i, tap in enumerate(taps)}

    @property
    def size_divisibility(self) -> int:
        return self.backbone.ldm.alignment


def _find(name: str) -> Path:
    """The file of a config: the user's own yaml, else the model zoo's."""
    own, zoo = Path(name), (Path(detectron2.__file__).parent / "model_zoo" / "configs").resolve()
    if own.suffix == ".yaml" and own.is_file():
        return own
    file = (zoo / name).resolve()
    if file.suffix not in (".yaml", ".py") or not file.is_file() or not file.is_relative_to(zoo):
        raise ModelError(f"There is no detectron2 config {name!r}. {HOW}")
    return file


def _from_yaml(file: Path, settings: HeadSettings, num_classes: int, strides: Sequence[int]) -> nn.Module:
    if "_levels" not in BACKBONE_REGISTRY:
        BACKBONE_REGISTRY.register(_levels)
    width, names, cfg = settings.width, _names(strides), get_cfg()
    merge_config(cfg, file)
    model = cfg.MODEL
    model.WEIGHTS, model.DEVICE, model.MASK_ON, model.KEYPOINT_ON = "", "cpu", False, False
    model.BACKBONE.NAME = "_levels"
    model.LEVELS = CfgNode({"WIDTH": width, "STRIDES": list(strides)})
    given = model.ANCHOR_GENERATOR.SIZES
    model.ANCHOR_GENERATOR.SIZES = anchor_sizes(strides, len(given[0]) if given else 3)
    model.ANCHOR_GENERATOR.OFFSET = 0.5
    for section in (model.RPN, model.RETINANET, model.ROI_HEADS):
        section.IN_FEATURES = names
    for section in (model.RETINANET, model.ROI_HEADS):
        section.NUM_CLASSES, section.SCORE_THRESH_TEST = num_classes, SCORE_FLOOR
    model.RETINANET.NUM_CONVS = settings.convs
    for key in ("FC_DIM", "CONV_DIM"):
        model.ROI_BOX_HEAD[key] = max(16, model.ROI_BOX_HEAD[key] * width // ZOO_WIDTH)
    cfg.TEST.DETECTIONS_PER_IMAGE = MAX_BOXES
    return build_honouring_ignore(cfg)


def build_honouring_ignore(cfg: CfgNode) -> nn.Module:
    """A config's model, with proposals that take no background from ignore regions."""
    built = build_model(cfg)
    if isinstance(built, GeneralizedRCNN):
        if type(built.proposal_generator) is not RPN:
            raise ValueError(f"its proposals come from {cfg.MODEL.PROPOSAL_GENERATOR.NAME}, not from RPN")
        built.proposal_generator = _RPN(cfg, built.backbone.output_shape())
    return built


def _from_python(file: Path, settings: HeadSettings, num_classes: int, strides: Sequence[int]) -> nn.Module:
    """The zoo's dense detectors of the newer kind: code of the installed package itself."""
    model, backbone = LazyConfig.load(str(file)).model, _Levels(settings.width, strides)
    model.backbone, model.head_in_features, model.num_classes = backbone, _names(strides), num_classes
    model.head.input_shape = list(backbone.output_shape().values())
    model.head.conv_dims = [settings.width] * settings.convs
    model.test_score_thresh, model.max_detections_per_image = SCORE_FLOOR, MAX_BOXES
    if "anchor_generator" in model:
        model.anchor_generator.sizes, model.anchor_generator.strides = anchor_sizes(strides, 3), list(strides)
        model.anchor_generator.offset = 0.5
    return instantiate(model)


class _Yaml(yaml.SafeLoader):
    """Reads yaml without running it: the zoo's RetinaNet computes its anchors in a tag, and ours replace them."""


_Yaml.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: [])


def merge_config(cfg: CfgNode, file: Path) -> None:
    """Put a config, after those that it is based on, into `cfg`."""
    own = yaml.load(file.read_text(encoding="utf-8"), Loader=_Yaml)  # noqa: S506, a SafeLoader
    base = own.pop("_BASE_", None)
    if base is not None:
        merge_config(cfg, file.parent / base)
    cfg.merge_from_other_cfg(CfgNode(own))


def _levels(cfg, input_shape) -> _Levels:
    return _Levels(cfg.MODEL.LEVELS.WIDTH, cfg.MODEL.LEVELS.STRIDES)


def _names(strides: Sequence[int]) -> list[str]:
    return [f"level{i}" for i in range(len(strides))]


def anchor_sizes(strides: Sequence[int], count: int) -> list[list[float]]:
    """`count` sizes an octave from ANCHOR_CELLS cells up, of each level."""
    return [[ANCHOR_CELLS * s * 2 ** (i / count) for i in range(count)] for s in strides]


def _images(levels: Sequence[Tensor], image_size: tuple[int, int]) -> ImageList:
    """Of images detectron2 needs only the sizes here."""
    return ImageList(levels[0], [tuple(image_size)] * len(levels[0]))


def _floats(predictions) -> list[list[Tensor]]:
    return [[level.float() for level in levels] for levels in predictions]


@contextmanager
def _mode(model: nn.Module, training: bool) -> Iterator[None]:
    """detectron2 gives losses or boxes by the model's mode; here the method called decides, and the mode stays."""
    before = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(before)
