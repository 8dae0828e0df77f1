"""Draws planned images and labels them in the same pass: the sampler's last features go to the adapter's head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from engine.adapter.adapter import Adapter, load_adapter, read_card
from engine.adapter.thresholds import check_quality, label_thresholds
from engine.config import Settings
from engine.data.dataset import Dataset, read_dataset
from engine.data.pixels import read_pixels, to_model
from engine.errors import ModelError
from engine.ldm.diffusion import LatentDiffusion, load_ldm
from engine.ldm.sampling import SampleRequest, check_last_step, last_timestep, sample

if TYPE_CHECKING:
    from engine.generation.plan import PlannedItem


@dataclass(frozen=True)
class Drawn:
    """One generated image (H, W, 3) uint8 and its boxes: (N, 4) XYXY in its pixels, scores (N,), category ids (N,)."""

    image: np.ndarray
    boxes_xyxy: np.ndarray
    scores: np.ndarray
    category_ids: np.ndarray


class Drawer(Protocol):
    """What a shard needs: an identity that pins the pixels and labels, and a way to draw a batch in order."""

    identity: dict

    def draw(self, items: Sequence[PlannedItem]) -> list[Drawn]: ...


class AdapterDrawer:
    """Img2img from the dataset's images, labelled by an adapter.

    Args:
        thresholds: by category id, where the adapter's own decide; they are part of the identity then.
    """

    def __init__(
        self,
        dataset: Dataset,
        ldm: LatentDiffusion,
        adapter: Adapter,
        settings: Settings,
        thresholds: dict[str, float | None] | None = None,
    ):
        self.ldm, self.adapter, self.dataset = ldm, adapter, dataset
        self.steps = settings.generation.steps
        own = [score for score in (thresholds or {}).values() if score is not None]
        self.floor = min([settings.generation.ignore_threshold, *own])
        self.sampler, self.label_pass = settings.generation.sampler, settings.generation.label_pass
        self.sources = {record.id: record for record in dataset.images}
        self.identity = {
            "ldm": {**ldm.identity.as_dict(), "multiple": ldm.alignment},
            "adapter": {
                "weights_sha256": adapter.card["weights_sha256"],
                "timestep": adapter.timestep,
                "validation": adapter.card.get("validation"),
                **({"thresholds": thresholds} if thresholds else {}),
            },
        }
        if self.label_pass == "last_step":
            check_last_step(last_timestep(ldm, self.sampler, self.steps), adapter.timestep)

    def draw(self, items: Sequence[PlannedItem]) -> list[Drawn]:
        """Draw items (of any mix of sizes) as one batch per size; results in the order of `items`."""
        by_size: dict[tuple[int, int], list[int]] = {}
        for i, item in enumerate(items):
            by_size.setdefault((item.width, item.height), []).append(i)
        drawn: dict[int, Drawn] = {}
        with _one_thread(self.ldm.device):
            for size, places in by_size.items():
                drawn.update(zip(places, self._draw_one_size([items[i] for i in places], size), strict=True))
        return [drawn[i] for i in range(len(items))]

    def _draw_one_size(self, items: Sequence[PlannedItem], size: tuple[int, int]) -> list[Drawn]:
        pixels = [read_pixels(self.dataset, self.sources[item.source_image_id], size) for item in items]
        requests = [
            SampleRequest(item.seed, item.prompt, item.negative_prompt, item.strength, item.guidance_scale, item.eta)
            for item in items
        ]
        sources = to_model(torch.stack(pixels))
        how = {"timestep": self.adapter.timestep, "sampler": self.sampler, "label_pass": self.label_pass}
        samples = sample(self.ldm, requests, self.steps, sources, **how)
        found = self.adapter.detect(samples.features, (size[1], size[0]))
        ids = np.array(self.adapter.category_ids)
        results = []
        for image, detections in zip(_to_uint8(samples.images), found, strict=True):
            kept = detections.scores >= self.floor
            results.append(
                Drawn(
                    image,
                    detections.boxes_xyxy[kept].float().cpu().numpy(),
                    detections.scores[kept].float().cpu().numpy(),
                    ids[detections.labels[kept].cpu().numpy()],
                )
            )
        return results


def load_drawer(data: Path, ldm: str | Path, adapter: Path, settings: Settings, split: str = "train") -> AdapterDrawer:
    """Load model and adapter for generating from a split of `data`.

    Raises:
        ModelError: the adapter belongs to another model, other classes, another resolution or noise level, is worse
            than `generation.min_adapter_map`, or lacks the thresholds per class that are asked for.
    """
    dataset = read_dataset(data, split)
    card = read_card(adapter)
    classes = [{"id": c.id, "name": c.name} for c in dataset.categories]
    if card["classes"] != classes:
        raise ModelError(
            f"The adapter in {adapter} knows the classes {[c['name'] for c in card['classes']]}, {data} has "
            f"{[c['name'] for c in classes]}. Train an adapter on this dataset."
        )
    if card["resolution"] != settings.ldm.resolution:
        raise ModelError(
            f"The adapter in {adapter} was trained at ldm.resolution={card['resolution']}, generation is set to "
            f"{settings.ldm.resolution}: it would see objects at another size. Use one resolution for both."
        )
    check_quality(card, settings.generation.min_adapter_map, adapter)
    thresholds = label_thresholds(card, adapter) if settings.generation.thresholds == "per_class" else None
    model = load_ldm(ldm, settings.ldm.revision, settings.ldm.dtype, settings.ldm.device, card["head"]["taps"])
    return AdapterDrawer(dataset, model, load_adapter(adapter, model), settings, thresholds)


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """On a CPU, sums split over threads differ in their last bits, and so do pixels: one thread gives the same bytes
    for any number of workers. More cores are used by more workers."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _to_uint8(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [-1, 1] -> (B, H, W, 3) uint8."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
