"""The head against what the authors' implementation computed from the same weights (dino_reference.json)."""

import hashlib
import json
import math
import re
from pathlib import Path

import pytest
import torch

from engine.detection.detector import Reader
from engine.detection.heads import HeadSettings
from engine.detection.heads.dino.reference import from_reference
from engine.detection.targets import Target
from engine.errors import ModelError
from engine.sections import DetrSettings

GOLDEN = json.loads(Path(__file__).with_name("dino_reference.json").read_text(encoding="utf-8"))


def seeded(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal numbers that depend on the name alone."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A weight under its reference name; all copies of a shared head are alike."""
    shared = re.sub(r"^(?:transformer\.decoder\.)?(class|bbox)_embed\.\d+\.", r"\1_embed.0.", name)
    normal = seeded(shared, shape)
    if len(shape) == 1:
        of_norm = ("norm" in name or "input_proj" in name) and name.endswith("weight")
        return 1 + 0.1 * normal if of_norm else 0.1 * normal
    gain = 3 if "class_embed" in name else 1
    return gain * normal / math.sqrt(math.prod(shape[1:]))


def reference_weights() -> dict[str, torch.Tensor]:
    return {name: weight(name, tuple(shape)) for name, shape in GOLDEN["shapes"].items()}


@pytest.fixture(scope="module")
def reader() -> Reader:
    sizes = GOLDEN["sizes"]
    detr = DetrSettings(
        queries=sizes["num_queries"],
        encoder_layers=sizes["enc_layers"],
        decoder_layers=sizes["dec_layers"],
        attention_heads=sizes["nheads"],
        feedforward=sizes["dim_feedforward"],
        denoising_queries=100,
        label_noise=sizes["dn_label_noise_ratio"],
        box_noise=sizes["dn_box_noise_scale"],
    )
    channels = GOLDEN["channels"]
    extra = sizes["num_feature_levels"] - len(channels)
    reader = Reader(HeadSettings("dino", 256, detr=detr), sizes["num_classes"], channels, [8, 16], extra)
    reader.load_state_dict(from_reference(reference_weights()))
    return reader.eval()


def backbone_levels() -> list[torch.Tensor]:
    return [seeded(f"level.{i}", (2, c, 8 // 2**i, 8 // 2**i)) for i, c in enumerate(GOLDEN["channels"])]


def test_boxes_and_logits_are_those_of_the_reference(reader):
    with torch.no_grad():
        logits, boxes = reader.head.predict(reader._merge(backbone_levels()))
    torch.testing.assert_close(logits, torch.tensor(GOLDEN["logits"]), atol=1e-4, rtol=0)
    torch.testing.assert_close(boxes, torch.tensor(GOLDEN["boxes"]), atol=1e-5, rtol=0)


def test_losses_are_those_of_the_reference(reader):
    """With box noise from the same random state, and without label noise, which is drawn in another order."""
    height, width = GOLDEN["image_size"]
    targets = []
    for truth in GOLDEN["targets"]:
        centre, extent = torch.tensor(truth["boxes"]).reshape(-1, 4).split(2, dim=1)
        boxes = torch.cat((centre - extent / 2, centre + extent / 2), dim=1)
        boxes = boxes * torch.tensor([width, height, width, height])
        targets.append(Target(boxes, torch.tensor(truth["labels"]), torch.zeros(0, 4)))
    torch.manual_seed(7)
    losses = reader.loss(backbone_levels(), (height, width), targets)
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(GOLDEN["losses"], rel=1e-4)


def test_weights_of_another_kind_of_dino_are_refused():
    weights = reference_weights()
    with pytest.raises(ModelError, match="refpoint_embed.weight is no weight"):
        from_reference({**weights, "refpoint_embed.weight": torch.zeros(10, 4)})
    with pytest.raises(ModelError, match="class_embed.1.bias differs"):
        from_reference({**weights, "class_embed.1.bias": torch.zeros(3)})


def test_labels_beyond_the_classes_are_cut_off():
    weights = reference_weights()
    weights["label_enc.weight"] = torch.randn(92, 256)
    mapped = from_reference(weights)["head.label_embed.weight"]
    assert torch.equal(mapped, weights["label_enc.weight"][:3])
