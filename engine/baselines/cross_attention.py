"""Boxes read off a diffusion model's cross-attention: the labeller that the adapter is measured against.

The softmax between an image's cells and a prompt's words tells where the model looks for a word. As in DAAM (Tang et
al. 2022, arXiv 2210.04885) the maps of a class's words are averaged over heads and layers at one size and stretched to
0 .. 1; what lies above a threshold falls into connected components, and each becomes a box. Nothing is trained.

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
    """Which attention is read and what makes a region.

    timesteps: noise levels whose maps are averaged. layers: names of the cross-attention layers, none for all.
    threshold: a pixel belongs to a region from this value of the map on, 0 to 1. min_side: a region narrower or lower
    than so many pixels is no object.
    """

    timesteps: tuple[int, ...] = (1,)
    layers: tuple[str, ...] = ()
    threshold: float = 0.5
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


def class_maps(
    ldm: LatentDiffusion,
    images: Tensor,
    prompts: Sequence[str],
    classes: Sequence[str],
    settings: CrossAttentionSettings,
) -> list[dict[int, Tensor]]:
    """For every image the maps (H, W) float32 from 0 to 1 of the classes that its prompt names, by class index."""
    maps = []
    for prompt, attention in zip(prompts, attention_maps(ldm, images, prompts, settings), strict=True):
        spans = {index: token_span(ldm.tokenizer, prompt, name, len(attention)) for index, name in enumerate(classes)}
        maps.append({index: _normalised(attention[tokens].mean(dim=0)) for index, tokens in spans.items() if tokens})
    return maps


def _normalised(values: Tensor) -> Tensor:
    """From 0 at the lowest to 1 at the highest; a map that is even but for rounding points nowhere and is 0."""
    low, high = values.aminmax()
    return (values - low) / (high - low) if high - low > 1e-6 else torch.zeros_like(values)


@torch.no_grad()
def attention_maps(
    ldm: LatentDiffusion, images: Tensor, prompts: Sequence[str], settings: CrossAttentionSettings
) -> Tensor:
    """(B, tokens, H, W) float32 on the CPU: attention of every pixel to the prompt's tokens, which sums to one over
    them; the mean over heads, layers and timesteps, every layer brought to the image's size before.

    The noise is the same for every image, so that a label depends on its image and prompt alone.
    """
    latents, conditioning = ldm.encode_images(images), ldm.encode_prompts(prompts)
    noise = draw_noise(latents.shape[1:], [torch.Generator().manual_seed(0)]).expand_as(latents)
    by_cells: dict[int, list[Tensor]] = {}
    for timestep in settings.timesteps:
        timesteps = torch.full((len(latents),), timestep, device=latents.device)
        with record_attention(ldm.denoiser, settings.layers) as recorded:
            ldm.denoise(ldm.add_noise(latents, noise, timesteps), timesteps, conditioning)
        for layer in recorded.values():
            by_cells.setdefault(layer.shape[1], []).append(layer)
    total: Tensor | float = 0.0
    for cells, layers in by_cells.items():
        grid = sum(layers).transpose(1, 2).unflatten(2, grid_of(cells, latents.shape[-2:])).cpu()
        # bilinear: convex, so that what sums to one over the tokens still does
        total = total + functional.interpolate(grid, size=images.shape[-2:], mode="bilinear", align_corners=False)
    return total / sum(len(layers) for layers in by_cells.values())


def cross_attention_layers(denoiser: nn.Module) -> dict[str, nn.Module]:
    """The layers between cells and words, by name.

    Raises:
        ModelError: there are none.
    """
    layers = {n: m for n, m in denoiser.named_modules() if n.endswith("attn2") and hasattr(m, "to_k")}
    if not layers:
        raise ModelError(
            f"{type(denoiser).__name__} has no cross-attention layers, so the cross-attention labeller cannot read it. "
            "Use a model whose pixels read their words in layers of their own, as Stable Diffusion's U-Net does."
        )
    return layers


@contextmanager
def record_attention(denoiser: nn.Module, names: Sequence[str] = ()) -> Iterator[dict[str, Tensor]]:
    """The softmax of the cross-attention layers in the call made inside, mean over heads: (B, cells, tokens) float32
    by layer, in call order. A later call overwrites an earlier one.

    Computed beside the layer from what it is given: its own processor runs untouched, whichever it is.

    Args:
        names: layers to read; none for all.

    Raises:
        ModelError: no cross-attention layers, or none of such a name.
    """
    layers = cross_attention_layers(denoiser)
    unknown = set(names) - set(layers)
    if unknown:
        raise ModelError(f"There is no cross-attention layer {min(unknown)}. Those of this model: {', '.join(layers)}.")
    maps: dict[str, Tensor] = {}

    def hook_for(name: str):
        def hook(attention: nn.Module, args: tuple, kwargs: dict) -> None:
            cells, words = args[0], kwargs["encoder_hidden_states"]
            mask = attention.prepare_attention_mask(kwargs.get("attention_mask"), words.shape[1], len(cells))
            if attention.norm_cross is not None:
                words = attention.norm_encoder_hidden_states(words)
            query = attention.head_to_batch_dim(attention.to_q(cells)).float()
            key = attention.head_to_batch_dim(attention.to_k(words)).float()
            shares = attention.get_attention_scores(query, key, mask)
            maps[name] = shares.unflatten(0, (len(cells), attention.heads)).mean(dim=1)

        return hook

    handles = [layers[n].register_forward_pre_hook(hook_for(n), with_kwargs=True) for n in names or layers]
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


def token_span(tokenizer, prompt: str, name: str, count: int) -> list[int]:
    """Places of the tokens that spell a class's name in a prompt, at every mention of it as whole words; [] without.

    Case and the kind of white space do not matter; "houses" is no mention of "house". Of `count` places the last never
    holds a word: what is behind it was cut off, and a mention that is cut is none.

    Raises:
        ModelError: the tokenizer does not say where its tokens come from.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} does not say where its tokens come from. Save the model with a fast tokenizer."
        )
    text, words = prompt.lower().strip(), r"\s+".join(re.escape(word) for word in name.lower().split())
    offsets = tokenizer(text, return_offsets_mapping=True).offset_mapping
    places = []
    for mention in re.finditer(rf"(?<!\w){words}(?!\w)", text) if words else ():
        tokens = [
            i for i, (start, stop) in enumerate(offsets) if max(start, mention.start()) < min(stop, mention.end())
        ]
        if tokens and tokens[-1] < count - 1:
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
