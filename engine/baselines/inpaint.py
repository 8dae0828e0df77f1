"""Mask inpainting: the objects of a labelled training image stay, the diffusion model draws what is around them anew.

At every denoising step the latents under the objects are replaced by the source's, noised to that step's level (blended
latent diffusion, Avrahami et al. 2022, arXiv 2206.02779; see `Stream._keep`), so any model serves, not only those that
were trained to inpaint. At the end the objects' own pixels are pasted back. So the source's boxes are exact labels.

Known weaknesses, which are the method's: no object ever looks or lies otherwise than in the source; where objects (or
their boxes, without masks) cover most of an image, little of it is another; and what the model draws of the classes
elsewhere, as words of the prompt invite it to, has no box and is taught as background.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import torch
from PIL import Image, ImageChops, ImageFilter
from scipy import ndimage
from torch import Tensor
from tqdm import tqdm

from engine.baselines.masks import mask_of, scaled
from engine.baselines.request import BaselineRequest, Outcome
from engine.data.dataset import Annotation, Dataset, ImageRecord, read_dataset, write_dataset
from engine.data.images import encode_jpeg
from engine.data.pixels import read_pixels, to_model, to_uint8
from engine.errors import RunFailed
from engine.generation.plan import PlannedItem, item_file, make_plan
from engine.generation.room import Room, draw_in_room
from engine.ldm.device import one_thread
from engine.ldm.diffusion import LatentDiffusion, load_ldm
from engine.ldm.encoder import Encoder
from engine.ldm.jobs import How, Job, SampleRequest, stack_rows
from engine.ldm.stream import Stream
from engine.sections import Settings

RIM = 1 / 64  # of the short edge: what is kept around an object, for its shadow and its blurred edge
FEATHER = 0.7  # pixels, standard deviation of the edge between kept and drawn


def inpaint(request: BaselineRequest) -> Outcome:
    """Draw `request.images` pictures around the objects of train.json of `request.data`.

    Sources, seeds, prompts, encode ratios, guidance and sampler are those that `de generate` would plan with the same
    settings; drawn is at `ldm.resolution`, and boxes are those of the source at that size. Ignore regions are kept as
    objects are.

    Raises:
        ConfigError: a seed or a number of images that cannot be. ModelError: the diffusion model cannot be used.
        DatasetError: the data cannot be used. RunFailed: pixels that are not finite, or too little memory for one.
    """
    train = read_dataset(request.data, "train")
    options = request.ldm
    model = load_ldm(options.id, options.revision, options.dtype, options.device)
    items = plan_items(train, model, request)
    (request.out / "images").mkdir(parents=True)
    drawn = Painter(train, model, request.settings).draw(items)
    for item, picture in tqdm(zip(items, drawn, strict=True), "inpaint", len(items), mininterval=2):
        path = request.out / "images" / item_file(item.item)
        path.write_bytes(encode_jpeg(picture, request.settings.generation.jpeg_quality))
    labels = _labels(train, items)
    write_dataset(request.out, "annotations", [_record(item) for item in items], labels, train.categories)
    ignored = sum(a.iscrowd for a in labels)
    return Outcome(len(items), len(labels) - ignored, ignored)


def plan_items(train: Dataset, ldm: LatentDiffusion, request: BaselineRequest) -> list[PlannedItem]:
    """What to draw, as the engine's own generation would plan it, but all of it from pictures; sizes lie together, so
    that calls of the model, which are of one size, are full."""
    generation = dataclasses.replace(request.settings.generation, text_to_image=0.0)
    settings = dataclasses.replace(request.settings, generation=generation)
    identity = {"ldm": {**ldm.identity.as_dict(), "multiple": ldm.alignment}}
    plan = make_plan(train, request.images, request.seed, settings, identity)
    return sorted(plan.items, key=lambda item: (_size(item), item.item))


class Painter:
    """Draws planned items around the objects of their sources."""

    def __init__(self, train: Dataset, ldm: LatentDiffusion, settings: Settings):
        self.train, self.ldm, self.generation = train, ldm, settings.generation
        self._sources = {record.id: record for record in train.images}
        self._encoder = Encoder(ldm)
        if settings.ldm.compile:
            ldm.compile()

    def draw(self, items: Sequence[PlannedItem]) -> Iterator[Image.Image]:
        """Their pictures, in their order; items of one size should lie together. What a picture looks like does not
        depend on the others.

        Raises:
            DatasetError: a source cannot be read. RunFailed: see `inpaint`.
        """
        generation = self.generation
        with one_thread(self.ldm.device):
            yield from draw_in_room(self._draw, items, generation.batch_size, generation.rows_per_call, Room())

    def _draw(self, items: Sequence[PlannedItem], in_flight: int, rows: int) -> Iterator[Image.Image]:
        for size, group in groupby(items, _size):
            some = list(group)
            for start in range(0, len(some), in_flight):
                yield from self._draw_together(some[start : start + in_flight], size, rows)

    def _draw_together(self, items: Sequence[PlannedItem], size: tuple[int, int], rows: int) -> Iterator[Image.Image]:
        generation = self.generation
        how = How(generation.steps, generation.sampler, "none", None, generation.guidance_share, rows)
        masks = [self._objects(item) for item in items]
        stream = Stream(self.ldm, how, size, len(items))
        finished = sorted(stream.run(self._jobs(items, masks, rows)), key=lambda job: job.key)
        for start in range(0, len(finished), rows):
            some = finished[start : start + rows]
            images = self.ldm.decode(stack_rows([job.latents for job in some], rows))
            for job, image in zip(some, images, strict=False):
                if not image.isfinite().all():
                    raise RunFailed(
                        f"Item {items[job.key].item}: the diffusion model drew pixels that are not finite. "
                        "Try --set ldm.dtype=float32."
                    )
                yield self._paste(items[job.key], masks[job.key], to_uint8(image))

    def _jobs(self, items: Sequence[PlannedItem], masks: Sequence[np.ndarray], rows: int) -> Iterator[Job]:
        keys = [(item.source_image_id, _size(item)) for item in items]
        sources = self._encoder.moments(keys, self._read, rows)
        for place, (item, mask, source) in enumerate(zip(items, masks, sources, strict=True)):
            if isinstance(source, Exception):
                raise source
            numbers = (item.strength, item.guidance_scale, item.eta)
            request = SampleRequest(item.seed, item.prompt, item.negative_prompt, *numbers)
            kept = kept_cells(mask, self.ldm.latent_stride) if mask.any() else None
            yield Job(place, request, source, kept)

    def _objects(self, item: PlannedItem) -> np.ndarray:
        """The pixels (H, W) bool of all objects of an item's source, at the size that it is drawn at."""
        record, (width, height) = self._sources[item.source_image_id], _size(item)
        mask = np.zeros((height, width), dtype=bool)
        for annotation in self.train.annotations_of(record.id):
            mask |= mask_of(annotation, record, (width, height))
        return mask

    def _paste(self, item: PlannedItem, mask: np.ndarray, drawn: np.ndarray) -> Image.Image:
        background = Image.fromarray(drawn)
        if not mask.any():
            return background
        pixels = read_pixels(self.train, self._sources[item.source_image_id], _size(item))
        source = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        return Image.composite(source, background, feathered(mask))

    def _read(self, key: tuple[int, tuple[int, int]]) -> Tensor:
        image_id, size = key
        return to_model(read_pixels(self.train, self._sources[image_id], size))


def kept_cells(mask: np.ndarray, stride: int) -> Tensor:
    """Pixels of objects (H, W) bool -> cells of latents (H / stride, W / stride) bool that a pixel of theirs, or of the
    rim around them, lies in."""
    rim = max(1, round(RIM * min(mask.shape)))
    wide = ndimage.binary_dilation(mask, iterations=rim)
    cells = wide.reshape(mask.shape[0] // stride, stride, mask.shape[1] // stride, stride)
    return torch.from_numpy(cells.any(axis=(1, 3)))


def feathered(mask: np.ndarray) -> Image.Image:
    """How much of the source is pasted, 0 to 255: all of the objects themselves, fading out around them."""
    hard = Image.fromarray((mask * 255).astype(np.uint8))
    return ImageChops.lighter(hard, hard.filter(ImageFilter.GaussianBlur(FEATHER)))


def _size(item: PlannedItem) -> tuple[int, int]:
    return item.width, item.height


def _record(item: PlannedItem) -> ImageRecord:
    names = ("item", "source_image_id", "seed", "strength", "guidance_scale", "eta", "prompt", "negative_prompt")
    provenance = {"mode": "inpaint"} | {name: getattr(item, name) for name in names}
    return ImageRecord(item.item, item_file(item.item), item.width, item.height, {"de": provenance})


def _labels(train: Dataset, items: Sequence[PlannedItem]) -> list[Annotation]:
    """The boxes of the items' sources, at the size that the items are drawn at."""
    sources = {record.id: record for record in train.images}
    labels: list[Annotation] = []
    for item in items:
        record = sources[item.source_image_id]
        for a in train.annotations_of(record.id):
            box = scaled(a.bbox_xywh, (record.width, record.height), _size(item))
            common = (len(labels) + 1, item.item, a.category_id, box, box[2] * box[3], a.iscrowd)
            labels.append(Annotation(*common, {}))
    return labels
