"""Where a detector's weights start: nowhere, the Hugging Face hub, or a path. Only safetensors are read."""

from __future__ import annotations

import logging
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from engine.data.files import file_sha256
from engine.errors import ConfigError, ModelError
from engine.sections import DetectorSettings

log = logging.getLogger(__name__)

# Repositories of the hub: of whole detectors, and of the ImageNet backbones of others.
HUB = {
    "rtdetr_v2": "PekingU/rtdetr_v2_r50vd",
    "d_fine": "ustc-community/dfine-large-coco",
    "lw_detr": "AnnaZhang/lwdetr_small_60e_coco",
    "rf_detr": "Roboflow/rf-detr-base",
    "fasterrcnn_resnet50_fpn": "timm/resnet50.tv_in1k",
    "retinanet_resnet50_fpn": "timm/resnet50.tv_in1k",
    "fcos_resnet50_fpn": "timm/resnet50.tv_in1k",
    "dino_resnet50": "timm/resnet50.tv_in1k",
}
FILE = "model.safetensors"
CONFIG = "config.json"  # beside it, of transformers' detectors
CLASS_PARTS = ("class_embed", "enc_score_head")  # theirs, whose size is the number of classes: these may start afresh


def weights_sha256(settings: DetectorSettings) -> str | None:
    """Of the weights at a path, and of the config beside them: the settings name but do not pin them. None for others.

    Raises:
        ModelError: there are none.
    """
    if settings.weights in ("none", "hub"):
        return None
    file = _file(Path(settings.weights))
    config = file.parent / CONFIG
    return file_sha256(file) + (f" {file_sha256(config)}" if config.is_file() else "")


def load_backbone(module: nn.Module, backbone: nn.Module, settings: DetectorSettings) -> None:
    """Fill a detector from a file of a whole one like it, or of its backbone alone. Nothing for weights "none".

    Raises:
        ModelError: the file cannot be read, or does not hold the whole backbone. ConfigError: see `hub_source`.
    """
    if settings.weights == "none":
        return
    file = _downloaded(settings) if settings.weights == "hub" else _file(Path(settings.weights))
    try:
        found = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{file} cannot be read as safetensors: {error}. Other formats of weights are not read."
        ) from None
    prefix = next(name for name, part in module.named_modules() if part is backbone) + "."
    needed = {name for name in module.state_dict() if name.startswith(prefix) and not name.endswith("_tracked")}
    filled = _fitting(module, found)
    if needed - filled.keys():
        filled = {prefix + name: value for name, value in _fitting(backbone, found).items()}
    missing = sorted(needed - filled.keys())
    if missing:
        raise ModelError(
            f"{file} lacks {len(missing)} of {len(needed)} tensors of the backbone of {settings.name}, or has them in "
            f"another size: {', '.join(missing[:3])} ... Give weights of this detector or of its backbone."
        )
    module.load_state_dict(filled, strict=False)
    log.info("%s: %d of %d tensors come from %s", settings.name, len(filled), len(module.state_dict()), file)


def from_pretrained(kind: type, settings: DetectorSettings, num_classes: int):
    """A detector of transformers with the config and weights of a folder or of the hub; its class layers start afresh
    where their number of classes is another.

    Raises:
        ModelError: nothing readable there, another architecture, or parts missing beside the class layers.
        ConfigError: options, which the config of the weights leaves no room for; or see `hub_source`.
    """
    if settings.options or settings.size != "full":
        raise ConfigError(
            "detector.options and detector.size say nothing where detector.weights bring their own sizes."
        )
    if settings.weights == "hub":
        source, where = hub_source(settings), {"revision": settings.revision}
    else:
        source, where = str(_file(Path(settings.weights)).parent), {"local_files_only": True}
    try:
        model, report = kind.from_pretrained(
            source,
            num_labels=num_classes,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            output_loading_info=True,
            **where,
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"detector.weights: no {settings.name} can be read from {source}: {reason}") from None
    fresh = sorted({*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])})
    lost = [name for name in fresh if not any(part in name for part in CLASS_PARTS)]
    if lost:
        raise ModelError(
            f"detector.weights: {source} lacks {len(lost)} tensors of {settings.name}, or has them in another size: "
            f"{', '.join(lost[:3])} ..."
        )
    return model


def hub_source(settings: DetectorSettings) -> str:
    """The hub's repository of a detector.

    Raises:
        ConfigError: there is none known, or no commit of it is given.
    """
    if settings.name not in HUB:
        raise ConfigError(f"detector.weights=hub: none are known for {settings.name}. Give a path, or none.")
    if not settings.revision:
        raise ConfigError(
            f"detector.weights=hub needs detector.revision, a commit of {HUB[settings.name]}, so that the same weights "
            "are read again."
        )
    return HUB[settings.name]


def _downloaded(settings: DetectorSettings) -> Path:
    from huggingface_hub import hf_hub_download

    source = hub_source(settings)
    try:
        return Path(hf_hub_download(source, FILE, revision=settings.revision))
    except (OSError, ValueError) as error:
        raise ModelError(f"detector.weights: {FILE} of {source} cannot be had: {error}") from None


def _file(path: Path) -> Path:
    file = path / FILE if path.is_dir() else path
    if file.suffix != ".safetensors" or not file.is_file():
        raise ModelError(
            f"detector.weights: {file} is no safetensors file. Give none, hub, a .safetensors file, or a folder with "
            f"{FILE}; pickled weights are not read, since they can run code."
        )
    return file


def _fitting(module: nn.Module, found: dict[str, Tensor]) -> dict[str, Tensor]:
    state = module.state_dict()
    return {n: v for n, v in found.items() if n in state and v.shape == state[n].shape}
