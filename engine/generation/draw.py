"""Draws planned images and labels them in the same pass: the sampler's last features go to the adapter's head."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from torch import Tensor

from engine.adapter.adapter import Adapter, load_adapter, read_card
from engine.adapter.thresholds import check_quality, label_thresholds
from engine.data.dataset import Dataset, read_dataset
from engine.data.pixels import read_pixels, to_model, to_uint8
from engine.data.sources import TRAIN, read_sources
from engine.errors import ModelError
from engine.generation.room import Room, draw_in_room, is_out_of_memory
from engine.ldm.device import one_thread
from engine.ldm.diffusion import LatentDiffusion, load_ldm
from engine.ldm.encoder import Encoder
from engine.ldm.jobs import Finished, How, Job, SampleRequest, check_last_step, stack_rows
from engine.ldm.sampling import last_timestep
from engine.ldm.stream import Stream
from engine.sections import Settings

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
    """What a shard needs: an identity that pins the pixels and labels, and a way to draw items in order."""

    identity: dict

    def draw(self, items: Sequence[PlannedItem], batch_size: int) -> Iterator[Drawn | Exception]:
        """Draw items, about `batch_size` at a time.

        Yields:
            Exactly one result an item, in the order of the items; for one that cannot be drawn, why not.

        Raises:
            ModelError, ConfigError: a matter of the run, not of an item.
            RunFailed: there is not enough memory.
        """
        ...


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
        own = [score for score in (thresholds or {}).values() if score is not None]
        self.floor = min([settings.generation.ignore_threshold, *own])
        generation = settings.generation
        self.how = How(
            steps=generation.steps,
            sampler=generation.sampler,
            label_pass=generation.label_pass,
            timestep=adapter.timestep,
            guidance_share=generation.guidance_share,
        )
        self.rows = generation.rows_per_call
        self._room, self._encoder = Room(), Encoder(ldm)
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
        if generation.label_pass == "last_step":
            check_last_step(last_timestep(ldm, generation.sampler, generation.steps), adapter.timestep)
        if settings.ldm.compile:
            self.identity["ldm"]["compile"] = True  # it changes last digits
            ldm.compile()

    def draw(self, items: Sequence[PlannedItem], batch_size: int) -> Iterator[Drawn | Exception]:
        """See `Drawer`. Items of one size stream through the model together (`engine.ldm.stream`), size after size."""
        results = draw_in_room(self._draw, items, batch_size, self.rows, self._room)
        while True:
            with one_thread(self.ldm.device):
                result = next(results, None)
            if result is None:
                return
            yield result

    def _draw(self, items: Sequence[PlannedItem], in_flight: int, rows: int) -> Iterator[Drawn | Exception]:
        by_size: dict[tuple[int, int], list[int]] = {}
        for i, item in enumerate(items):
            by_size.setdefault((item.width, item.height), []).append(i)
        done: dict[int, Drawn | Exception] = {}
        place = 0
        for size, places in by_size.items():
            for i, result in self._draw_one_size([items[i] for i in places], size, in_flight, rows):
                done[places[i]] = result
                while place in done:
                    yield done.pop(place)
                    place += 1

    def _draw_one_size(
        self, items: Sequence[PlannedItem], size: tuple[int, int], in_flight: int, rows: int
    ) -> Iterator[tuple[int, Drawn | Exception]]:
        """Places in `items` and what became of them, in the order in which they finish."""
        how = dataclasses.replace(self.how, rows_per_call=rows)
        stream = Stream(self.ldm, how, size, min(in_flight, len(items)))
        failed: list[tuple[int, Exception]] = []
        waiting: list[Finished] = []  # for the decoder and the head, which get full calls too
        for finished in stream.run(self._jobs(items, size, rows, failed)):
            waiting.append(finished)
            if len(waiting) == rows:
                yield from self._label(waiting, rows)
                waiting = []
            yield from failed
            failed.clear()
        if waiting:
            yield from self._label(waiting, rows)
        yield from failed

    def _jobs(
        self, items: Sequence[PlannedItem], size: tuple[int, int], rows: int, failed: list[tuple[int, Exception]]
    ) -> Iterator[Job]:
        """The items that can be drawn; the others go to `failed`."""
        drawn_from = [item for item in items if item.mode == "img2img"]
        moments = self._encoder.moments([(i.source_image_id, size) for i in drawn_from], self._read, rows)
        for place, item in enumerate(items):
            source = next(moments) if item.mode == "img2img" else None
            error = source if isinstance(source, Exception) else self._prepare_prompts(items[place:], rows)
            if error is not None:
                if is_out_of_memory(error):
                    raise error
                failed.append((place, error))
                continue
            strength = item.strength if item.mode == "img2img" else 1.0
            numbers = (strength, item.guidance_scale, item.eta)
            yield Job(place, SampleRequest(item.seed, item.prompt, item.negative_prompt, *numbers), source)

    def _prepare_prompts(self, items: Sequence[PlannedItem], rows: int) -> Exception | None:
        """Encode the texts of the first of the items, and of the next ones where there is room; or say why not."""
        words = _words(items[0])
        try:
            self.ldm.prepare_prompts(words, (w for item in items for w in _words(item)), rows)
        except Exception:
            try:  # it may be a text of another item that cannot be read
                self.ldm.prepare_prompts(words, (), rows)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                return error.with_traceback(None)  # its frames would keep tensors alive
        return None

    def _read(self, key: tuple[int, tuple[int, int]]) -> Tensor:
        image_id, size = key
        return to_model(read_pixels(self.dataset, self.sources[image_id], size))

    def _label(self, group: Sequence[Finished], rows: int) -> Iterator[tuple[int, Drawn | Exception]]:
        images = self.ldm.decode(stack_rows([item.latents for item in group], rows))
        levels = zip(*(item.features for item in group), strict=True)
        found = self.adapter.detect([stack_rows(level, rows) for level in levels], images)
        ids = np.array(self.adapter.category_ids)
        for item, image, detections in zip(group, images, found, strict=False):
            if not image.isfinite().all():
                yield item.key, ValueError("the diffusion model drew pixels that are not finite")
                continue
            kept = detections.scores >= self.floor
            yield (
                item.key,
                Drawn(
                    to_uint8(image),
                    detections.boxes_xyxy[kept].float().cpu().numpy(),
                    detections.scores[kept].float().cpu().numpy(),
                    ids[detections.labels[kept].cpu().numpy()],
                ),
            )


def load_drawer(data: Path, ldm: str | Path, adapter: Path, settings: Settings, split: str = TRAIN) -> AdapterDrawer:
    """Load model and adapter for generating from a split of `data`.

    Raises:
        ModelError: the adapter belongs to another model, other classes, another resolution or noise level, is worse
            than `generation.min_adapter_map`, or lacks the thresholds per class that are asked for.
    """
    dataset = read_sources(data, settings.generation.unlabelled) if split == TRAIN else read_dataset(data, split)
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


def _words(item: PlannedItem) -> tuple[str, ...]:
    return (item.prompt, item.negative_prompt) if item.guidance_scale > 1 else (item.prompt,)
