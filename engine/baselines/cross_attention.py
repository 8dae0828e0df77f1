"""Boxes read off a diffusion model's cross-attention: the labeller that the adapter is measured against.

The softmax between an image's cells and a prompt's words tells where the model looks for a word. As in DAAM (Tang et
al. 2022, arXiv 2210.04885) the maps of a class's words are averaged over heads and layers at one size and divided by
their maximum; what lies above a threshold falls into connected components, and each becomes a box. Nothing is trained.

Images are labelled by one call (or a few) on their noised latents, as the adapter reads them in training. Generated
images are labelled the same way, from the finished image and its prompt; the sampler's own calls are not recorded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from engine.detection.targets import MAX_BOXES, SCORE_FLOOR, Detections
from engine.errors import ModelError
from engine.ldm.diffusion import LatentDiffusion, draw_noise


@dataclass(frozen=True)
class CrossAttentionSettings:
    """timesteps: noise levels whose maps are averaged; threshold: share of a map's maximum that belongs to a region;
    finest_only: only the layers with the most cells, else all; min_side: pixels below which a region is no object."""

    timesteps: tuple[int, ...] = (1,)
    threshold: float = 0.5
    finest_only: bool = False
    min_side: float = 4.0


def label(
    ldm: LatentDiffusion,
    images: Tensor,
    prompts: Sequence[str],
    classes: Sequence[str],
    settings: CrossAttentionSettings,
) -> list[Detections]:
    """Detections of the prompted classes in images (B, 3, H, W) in [-1, 1], boxes in their pixels.

    A class whose name is no word of the prompt gets no box; a class that is, gets at least one region.

    Raises:
        ModelError: the model has no cross-attention layers, or its tokenizer does not say where its tokens come from.
    """
    maps = class_maps(ldm, images, prompts, classes, settings)
    return [boxes_of(named, settings.threshold, settings.min_side) for named in maps]


@torch.no_grad()
def class_maps(
    ldm: LatentDiffusion,
    images: Tensor,
    prompts: Sequence[str],
    classes: Sequence[str],
    settings: CrossAttentionSettings,
) -> list[dict[int, Tensor]]:
    """For every image the maps (H, W) float32 with maximum 1 of the classes that its prompt names, by class index."""
    spans = [{i: found for i, name in enumerate(classes) if (found := token_span(ldm, p, name))} for p in prompts]
    attention = attention_maps(ldm, images, prompts, settings)
    maps = []
    for image_attention, named in zip(attention, spans, strict=True):
        raw = {index: image_attention[tokens].mean(dim=0) for index, tokens in named.items()}
        maps.append({index: values / values.max().clamp(min=1e-12) for index, values in raw.items()})
    return maps


@torch.no_grad()
def attention_maps(
    ldm: LatentDiffusion, images: Tensor, prompts: Sequence[str], settings: CrossAttentionSettings
) -> Tensor:
    """(B, tokens, H, W) float32 on the CPU: attention of every pixel to the prompt's tokens, which sums to one over
    them; the mean over heads, layers and timesteps, every layer brought to the image's size before.

    The noise is the same for every image, so that a label depends on its image and prompt alone.
    """
    latents = ldm.encode_images(images)
    noise = draw_noise(latents.shape[1:], [torch.Generator().manual_seed(0)]).to(latents).expand_as(latents)
    states = ldm.encode_prompts(prompts)
    recorded: list[Tensor] = []
    for timestep in settings.timesteps:
        t = torch.full((len(latents),), timestep, device=latents.device)
        with record_attention(ldm.unet) as layers:
            ldm.unet(ldm.scheduler.add_noise(latents, noise, t), t, states)
        finest = max(layer.shape[1] for layer in layers)
        recorded += [layer for layer in layers if layer.shape[1] == finest or not settings.finest_only]
    total = torch.zeros(len(images), recorded[0].shape[2], *images.shape[-2:])
    for layer in recorded:
        grid = layer.transpose(1, 2).unflatten(2, grid_of(layer.shape[1], latents.shape[-2:])).float().cpu()
        # bilinear: convex, so that what sums to one over the tokens still does
        total += functional.interpolate(grid, size=total.shape[-2:], mode="bilinear", align_corners=False)
    return total / len(recorded)


@contextmanager
def record_attention(unet: nn.Module) -> Iterator[list[Tensor]]:
    """The softmax of every cross-attention layer in the calls made inside, mean over heads: (B, cells, tokens) each.

    Computed beside the layer from what it is given: its own processor runs untouched, whichever it is.

    Raises:
        ModelError: no cross-attention layers.
    """
    layers = [module for name, module in unet.named_modules() if name.endswith("attn2") and hasattr(module, "to_k")]
    if not layers:
        raise ModelError(
            f"{type(unet).__name__} has no cross-attention layers: words and pixels share its attention, so the "
            "cross-attention labeller cannot read it. Use a model with a U-Net."
        )
    maps: list[Tensor] = []

    def hook(attention: nn.Module, args: tuple, kwargs: dict) -> None:
        cells = args[0] if args else kwargs["hidden_states"]
        words = kwargs["encoder_hidden_states"]
        if attention.norm_cross is not None:
            words = attention.norm_encoder_hidden_states(words)
        query = attention.head_to_batch_dim(attention.to_q(cells))
        key = attention.head_to_batch_dim(attention.to_k(words))
        scores = attention.get_attention_scores(query, key)
        maps.append(scores.unflatten(0, (len(cells), attention.heads)).mean(dim=1))

    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def grid_of(cells: int, latent_size: Sequence[int]) -> tuple[int, int]:
    """(rows, columns) of a layer with so many cells, on latents of (height, width) that are halved, rounding up.

    Raises:
        ModelError: no halving has so many cells.
    """
    height, width = latent_size
    while height * width > cells and height * width > 1:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != cells:
        raise ModelError(f"A layer with {cells} cells does not fit latents of {tuple(latent_size)}, halved or not.")
    return height, width


def token_span(ldm: LatentDiffusion, prompt: str, name: str) -> list[int]:
    """Places of the tokens that spell a class's name in a prompt, at every mention of it as whole words; [] without.

    Case and the kind of white space do not matter; "houses" is no mention of "house". Mentions that the tokenizer cuts
    off are none.

    Raises:
        ModelError: the tokenizer does not say where its tokens come from.
    """
    if not ldm.tokenizer.is_fast:
        raise ModelError(
            f"{type(ldm.tokenizer).__name__} does not say where its tokens come from. "
            "Save the model with a fast tokenizer."
        )
    words = r"\s+".join(re.escape(word) for word in name.split())
    mentions = [match.span() for match in re.finditer(rf"(?<!\w){words}(?!\w)", prompt, re.IGNORECASE)] if words else []
    if not mentions:
        return []
    offsets = ldm.tokenizer(
        prompt, truncation=True, max_length=ldm.tokenizer.model_max_length, return_offsets_mapping=True
    ).offset_mapping
    places = []
    for start, stop in mentions:
        tokens = [i for i, (a, b) in enumerate(offsets) if a < b and a < stop and b > start]
        if tokens and offsets[tokens[-1]][1] >= stop:
            places += tokens
    return places


def boxes_of(maps: dict[int, Tensor], threshold: float, min_side: float = 0.0) -> Detections:
    """Boxes around the connected components (8 neighbours) of maps (H, W) from 0 to 1 at or above a threshold, scored
    by their mean value."""
    found: list[tuple[float, int, list[float]]] = []
    for index, values in maps.items():
        regions, _ = ndimage.label((values >= threshold).numpy(), structure=[[1] * 3] * 3)
        for number, (rows, columns) in enumerate(ndimage.find_objects(regions), start=1):
            if min(rows.stop - rows.start, columns.stop - columns.start) < min_side:
                continue
            score = float(values[torch.from_numpy(regions == number)].mean())
            found.append((score, index, [columns.start, rows.start, columns.stop, rows.stop]))
    best = sorted((item for item in found if item[0] >= SCORE_FLOOR), key=lambda item: -item[0])[:MAX_BOXES]
    return Detections(
        torch.tensor([box for _, _, box in best], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([index for _, index, _ in best], dtype=torch.int64),
        torch.tensor([score for score, _, _ in best], dtype=torch.float32),
    )
