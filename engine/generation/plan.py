"""The whole run decided before it starts: every item with its seed, prompt and strength, and the shards."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from engine.config import as_dict, digest
from engine.data.sizes import working_size
from engine.errors import ConfigError, DatasetError
from engine.generation.durable import to_json
from engine.generation.plan_rows import CHUNK, ITEM, MODES, arrange, column_bytes, fill_numbers
from engine.generation.prompts import prompt_of, with_style
from engine.generation.wishes import (
    class_weights,
    number_of_images,
    requested_weights,
    size_weights,
    sizes_as_words,
    source_weights,
    weights_as_words,
)
from engine.sections import GenerationSettings, Settings

if TYPE_CHECKING:
    from engine.data.dataset import Dataset, ImageRecord

# These change how the work is cut up, whether it begins, or what is said about it afterwards, but no image and no box.
NOT_IN_DIGEST = ("batch_size", "shard_size", "max_failed_rate", "min_adapter_map", "stall_seconds")
# These only lead to the weights of classes, sizes and sources, which are in the digest themselves.
LEAD_TO_WEIGHTS = ("class_weights", "size_weights", "balance", "weak_classes", "weak_sizes", "requests")
TABLES = ("categories", "sources", "prompts", "styles")


@dataclass(frozen=True)
class PlannedItem:
    """One image to draw.

    Attributes:
        item: number in the plan, from 1; the id of the generated image.
        source_image_id, source_file: the real image it starts from; the file is relative to the dataset's images/.
        seed: of the noise; from 0, below 2^53.
        strength: encode ratio, 0 to 1.
        width, height: pixels at which it is drawn.
        mode: "img2img"; or "text_to_image", where the source image only lends its words and its size.
    """

    item: int
    source_image_id: int
    source_file: str
    prompt: str
    negative_prompt: str
    seed: int
    strength: float
    guidance_scale: float
    eta: float
    width: int
    height: int
    mode: str = "img2img"


@dataclass(frozen=True, eq=False)
class Plan:
    """A run. Tables instead of objects: a plan of a million items stays small. Equal plans have equal digests and are
    cut up equally.

    Attributes:
        spec: everything that decides pixels and labels, in json-ready values: run seed, number of images, digest of the
            dataset, identity of what draws, settings.
        categories: (id, name, supercategory) of each class of the source.
        sources: (image id, file name, drawn width, drawn height) of each source image.
        prompts: (prompt, negative prompt).
        styles: words that come behind an item's prompt; one empty entry where no styles were asked for.
        rows: (N,) of dtype `ITEM`: the items in order, read-only; a memory map where the plan was loaded.
        shard_size: items per shard. Not part of the digest: it changes neither an image nor a box.
        batch_size: a recommendation, not part of the digest.
    """

    spec: Mapping
    categories: tuple[tuple[int, str, str], ...]
    sources: tuple[tuple[int, str, int, int], ...]
    prompts: tuple[tuple[str, str], ...]
    styles: tuple[str, ...]
    rows: np.ndarray = field(repr=False)
    shard_size: int
    batch_size: int
    digest: str = field(init=False)

    def __post_init__(self):
        self.rows.flags.writeable = False
        object.__setattr__(self, "digest", _plan_digest(self))

    def __eq__(self, other) -> bool:
        return isinstance(other, Plan) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[str, int, int]:
        return self.digest, self.shard_size, self.batch_size

    @property
    def images(self) -> int:
        """Number of items."""
        return len(self.rows)

    @property
    def shards(self) -> int:
        """Number of shards; they are numbered from 0."""
        return -(-len(self.rows) // self.shard_size)

    @property
    def items(self) -> tuple[PlannedItem, ...]:
        """All items, in order, as objects: for small plans."""
        return tuple(self.item(number) for number in range(1, self.images + 1))

    def item(self, number: int) -> PlannedItem:
        """The item of a number from 1."""
        if not 1 <= number <= self.images:
            raise ValueError(f"item {number} is not one of the plan's {self.images} (from 1)")
        source, prompt, style, mode, *numbers = self.rows[number - 1].item()
        image_id, file_name, *size = self.sources[source]
        words, negative = self.prompts[prompt]
        words = with_style(words, self.styles[style])
        return PlannedItem(number, image_id, file_name, words, negative, *numbers, *size, MODES[mode])

    def numbers_of(self, shard: int) -> range:
        """The item numbers of a shard; a function of the plan alone, whoever works on it."""
        if not 0 <= shard < self.shards:
            raise ValueError(f"shard {shard} is not one of the plan's {self.shards} (0 to {self.shards - 1})")
        first = shard * self.shard_size + 1
        return range(first, min(first + self.shard_size, self.images + 1))

    def items_of(self, shard: int) -> tuple[PlannedItem, ...]:
        """The items of a shard, in order."""
        return tuple(self.item(number) for number in self.numbers_of(shard))


def make_plan(dataset: Dataset, images: int | None, seed: int, settings: Settings, identity: Mapping) -> Plan:
    """Decide a run.

    Sources of equal weight come in an order drawn from the run seed, again and again, so that each serves equally often
    (give or take one); see `engine.generation.wishes` for weights. An item's seed depends on the run seed, its source's
    id and how often that source was used before.

    Args:
        dataset: the real images.
        images: how many to draw; None for `generation.variants_per_image` of each source.
        seed: of the run.
        settings: `generation`, and `ldm.resolution`, decide the items.
        identity: what draws, as `Drawer.identity`; image sides are rounded to its `["ldm"]["multiple"]`.

    Raises:
        DatasetError: no image to start from, or an unusable file of `weak_classes`, `weak_sizes` or `requests`.
        ConfigError: no image wanted or more than variants of all sources, a run seed that is not a whole number from 0,
            weights of unknown classes or that leave no source.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"The run seed must be a whole number from 0, not {seed!r}.")
    if not dataset.images:
        raise DatasetError(f"{dataset.folder}: split '{dataset.split}' has no image to start from.")
    generation = settings.generation
    images = number_of_images(images, generation.variants_per_image, len(dataset.images))
    by_class, by_source = class_weights(dataset, generation), requested_weights(dataset, generation)
    by_size = size_weights(generation)
    order = sorted(dataset.images, key=lambda image: (_hash(seed, "order", image.id), image.id))
    weights = source_weights(dataset, order, by_class, by_source, by_size)
    sources, used, variants = _served(weights, images, generation.variants_per_image)
    chosen = [order[place] for place in used.tolist()]
    prompts = [(prompt_of(dataset, image, generation), generation.negative_prompt) for image in chosen]
    table = {pair: index for index, pair in enumerate(dict.fromkeys(prompts))}
    styles = generation.styles or ("",)

    rows = np.zeros(images, ITEM)
    rows["source"] = sources
    rows["prompt"] = np.array([table[pair] for pair in prompts])[sources]
    rows["style"] = (sources + variants) % len(styles)  # dealt out: each source goes through all of them
    fill_numbers(rows, seed, np.array([image.id for image in chosen])[sources], variants, generation)
    decides = _deciding(dataset, generation, by_class, by_source, by_size)
    return Plan(
        spec=_spec(dataset, images, seed, settings, identity, decides),
        categories=tuple((c.id, c.name, c.supercategory) for c in dataset.categories),
        sources=tuple(_source(image, settings.ldm.resolution, identity["ldm"]["multiple"]) for image in chosen),
        prompts=tuple(table),
        styles=styles,
        rows=rows,
        shard_size=generation.shard_size,
        batch_size=generation.batch_size,
    )


def deciding_settings(dataset: Dataset, generation: GenerationSettings) -> dict:
    """The settings of generation that decide images and boxes drawn from a dataset, json-ready, as a plan states them.

    Raises:
        ConfigError, DatasetError: see `class_weights` and `requested_weights`.
    """
    by_class, by_source = class_weights(dataset, generation), requested_weights(dataset, generation)
    return _deciding(dataset, generation, by_class, by_source, size_weights(generation))


def item_file(number: int) -> str:
    """File name of a generated image. It comes from the number alone, never from any text."""
    return f"{number:09d}.jpg"


def _served(weights: np.ndarray, images: int, variants: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images,) index in the sources used, (U,) their places in the order, (images,) variant."""
    if variants:  # all of a source together, so that it is read and encoded once for all its variants
        place, variant = (column[:images] for column in arrange(weights, variants * len(weights), together=True))
    else:
        place, variant = arrange(weights, images)
    used, sources = np.unique(place, return_inverse=True)
    return sources, used, variant


def _source(image: ImageRecord, resolution: int, multiple: int) -> tuple[int, str, int, int]:
    return (image.id, image.file_name, *working_size(image.width, image.height, resolution, multiple))


def _spec(dataset: Dataset, images: int, seed: int, settings: Settings, identity: Mapping, deciding: dict) -> dict:
    return {
        "seed": seed,
        "images": images,
        "data": dataset.digest(),
        "identity": dict(identity),
        "settings": {
            "generation": deciding,
            "ldm": {"resolution": settings.ldm.resolution, "dtype": settings.ldm.dtype},
        },
    }


def _deciding(
    dataset: Dataset,
    generation: GenerationSettings,
    by_class: Mapping[int, float],
    by_source: Mapping[int, float],
    by_size: Mapping[str, float],
) -> dict:
    left_out = (*NOT_IN_DIGEST, *LEAD_TO_WEIGHTS)
    decides = {k: v for k, v in as_dict(generation).items() if k not in left_out}
    # In the setting's own form: a plan can be made again from what is written here.
    decides["class_weights"] = weights_as_words(dataset, by_class)
    if sizes := sizes_as_words(by_size):  # a plan without them is what it was before there were any
        decides["size_weights"] = sizes
    if by_source:  # what the requests come to, however their file spells it; a plan without them is what it was
        decides["requests"] = digest({str(source): weight for source, weight in sorted(by_source.items())})
    return decides


def _plan_digest(plan: Plan) -> str:
    """Covers the spec and the items made from it: a newer version that would plan other items is noticed too."""
    tables = hashlib.sha256()
    for name in TABLES:
        table = getattr(plan, name)
        for start in range(0, len(table), CHUNK):
            tables.update(to_json([name, table[start : start + CHUNK]]) + b"\n")
    for piece in column_bytes(plan.rows):
        tables.update(piece)
    return digest({"spec": dict(plan.spec), "items": tables.hexdigest()})


def _hash(*parts) -> int:
    """A uniform whole number from 0, below 2^53; the same in every version of every library."""
    text = ":".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode("ascii")).digest()[:8], "big") >> 11
