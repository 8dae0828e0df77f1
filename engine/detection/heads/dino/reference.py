"""Weights of the authors' implementation (github.com/IDEA-Research/DINO) under the names of a `Reader` with this head.

The table in docs/dino_mapping.md says the same in words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from engine.errors import ModelError

BATCH_NORM_EPSILON = 1e-5

# Reference name (regular expression) -> name in a Reader; the first that fits counts.
NAMES = (
    (r"transformer\.level_embed", r"head.encoder.level_embed"),
    (r"transformer\.encoder\.layers\.(\d+)\.self_attn\.(.+)", r"head.encoder.layers.\1.attention.\2"),
    (r"transformer\.encoder\.layers\.(\d+)\.norm1\.(.+)", r"head.encoder.layers.\1.norm.\2"),
    (r"transformer\.encoder\.layers\.(\d+)\.(linear[12]\..+)", r"head.encoder.layers.\1.feed_forward.\2"),
    (r"transformer\.encoder\.layers\.(\d+)\.norm2\.(.+)", r"head.encoder.layers.\1.feed_forward.norm.\2"),
    (r"transformer\.enc_output\.(.+)", r"head.selection.project.\1"),
    (r"transformer\.enc_output_norm\.(.+)", r"head.selection.norm.\1"),
    (r"transformer\.enc_out_class_embed\.(.+)", r"head.selection.class_head.\1"),
    (r"transformer\.enc_out_bbox_embed\.(.+)", r"head.selection.box_head.\1"),
    (r"transformer\.tgt_embed\.weight", r"head.selection.content"),
    (r"transformer\.decoder\.layers\.(\d+)\.self_attn\.(.+)", r"head.decoder.layers.\1.self_attention.\2"),
    (r"transformer\.decoder\.layers\.(\d+)\.norm2\.(.+)", r"head.decoder.layers.\1.self_norm.\2"),
    (r"transformer\.decoder\.layers\.(\d+)\.cross_attn\.(.+)", r"head.decoder.layers.\1.cross_attention.\2"),
    (r"transformer\.decoder\.layers\.(\d+)\.norm1\.(.+)", r"head.decoder.layers.\1.cross_norm.\2"),
    (r"transformer\.decoder\.layers\.(\d+)\.(linear[12]\..+)", r"head.decoder.layers.\1.feed_forward.\2"),
    (r"transformer\.decoder\.layers\.(\d+)\.norm3\.(.+)", r"head.decoder.layers.\1.feed_forward.norm.\2"),
    (r"transformer\.decoder\.norm\.(.+)", r"head.decoder.norm.\1"),
    (r"transformer\.decoder\.ref_point_head\.(.+)", r"head.decoder.position_head.\1"),
    # One head for all layers, which the reference lists once a layer, and again below its decoder.
    (r"(?:transformer\.decoder\.)?class_embed\.\d+\.(.+)", r"head.decoder.class_head.\1"),
    (r"(?:transformer\.decoder\.)?bbox_embed\.\d+\.(.+)", r"head.decoder.box_head.\1"),
    (r"label_enc\.weight", r"head.label_embed.weight"),
)


def from_reference(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of `Reader(HeadSettings("dino", ...), num_classes, channels, strides, extra_levels)`.

    Args:
        weights: the reference's state dict (its checkpoint's "model"); names of its backbone are left out.

    Returns:
        Every entry of the Reader's state dict. Without projections among the weights, those of the head alone.

    Raises:
        ModelError: a name that is not known, decoder layers with heads of their own, or projections that a Reader does
            not have.
    """
    mapped: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.startswith(("backbone.", "input_proj.")):
            continue
        ours = _renamed(name)
        if ours in mapped and not torch.equal(mapped[ours], value):
            raise ModelError(
                f"The reference's {name} differs from the same weight of another decoder layer. This head has one "
                "class head and one box head for all layers: use weights trained with dec_pred_class_embed_share and "
                "dec_pred_bbox_embed_share."
            )
        mapped[ours] = value
    classes = len(mapped["head.decoder.class_head.bias"])
    mapped["head.label_embed.weight"] = mapped["head.label_embed.weight"][:classes]  # the rest stands for no class
    return {**mapped, **_projections(weights)}


def _renamed(name: str) -> str:
    for pattern, ours in NAMES:
        found = re.fullmatch(pattern, name)
        if found:
            return found.expand(ours)
    raise ModelError(
        f"{name} is no weight of the DINO that this head is (two-stage, learned content queries, deformable encoder "
        "and decoder). Weights of its 4-scale and 5-scale configurations fit."
    )


def _projections(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What stands before the head. The reference has no batch normalisation there, so a Reader's does nothing; and it
    makes its extra level in one convolution, so the Reader's second one does nothing there."""
    mapped: dict[str, Tensor] = {}
    count = len({name.split(".")[1] for name in weights if name.startswith("input_proj.")})
    extra = 0
    for i in range(count):
        conv, bias = weights[f"input_proj.{i}.0.weight"], weights[f"input_proj.{i}.0.bias"]
        width = len(conv)
        if conv.shape[-1] == 3:
            if extra or i < count - 1:
                raise ModelError(
                    "These DINO weights add more than one level above the backbone's, the second from the normalised "
                    "first; a Reader does not normalise in between. Use weights with one extra level."
                )
            mapped[f"extra.{extra}.weight"], mapped[f"extra.{extra}.bias"] = conv, bias
            extra += 1
            conv, bias = torch.eye(width)[:, :, None, None], torch.zeros(width)
        mapped[f"neck.maps.{i}.0.weight"], mapped[f"neck.maps.{i}.0.bias"] = conv, bias
        mapped[f"neck.maps.{i}.1.weight"] = weights[f"input_proj.{i}.1.weight"]
        mapped[f"neck.maps.{i}.1.bias"] = weights[f"input_proj.{i}.1.bias"]
        mapped.update(_idle_batch_norm(f"norms.{i}", conv.shape[1]))
    return mapped


def _idle_batch_norm(name: str, channels: int) -> dict[str, Tensor]:
    """A batch normalisation that changes nothing outside training."""
    return {
        f"{name}.weight": torch.ones(channels),
        f"{name}.bias": torch.zeros(channels),
        f"{name}.running_mean": torch.zeros(channels),
        f"{name}.running_var": torch.full((channels,), 1 - BATCH_NORM_EPSILON),
        f"{name}.num_batches_tracked": torch.tensor(0),
    }
