"""The whole run decided before it starts: every item with its seed, prompt and strength, and the shards."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.config import GenerationSettings, Settings, as_dict, digest
from engine.data.sizes import working_size
from engine.errors import ConfigError, DatasetError
from engine.generation.durable import to_json
from engine.generation.prompts import prompt_of

if TYPE_CHECKING:
    from engine.data.dataset import Dataset

# These change how the work is cut up, whether it begins, or what is said about it afterwards, but no image and no box.
NOT_IN_DIGEST = ("batch_size", "shard_size", "max_failed_rate", "min_adapter_map", "stall_seconds")


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


@dataclass(frozen=True)
class Plan:
    """A run. Tables instead of objects: a plan of a million items stays small.

    Attributes:
        spec: everything that decides pixels and labels, in json-ready values: run seed, number of images, digest of the
            dataset, identity of what draws, settings.
        categories: (id, name, supercategory) of each class of the source.
        sources: (image id, file name, drawn width, drawn height) of each source image.
        prompts: (prompt, negative prompt).
        rows: (index in sources, index in prompts, seed, strength, guidance scale, eta) of each item, in order.
        shard_size: items per shard. Not part of the digest: it changes neither an image nor a box.
        batch_size: a recommendation, not part of the digest.
    """

    spec: Mapping
    categories: tuple[tuple[int, str, str], ...]
    sources: tuple[tuple[int, str, int, int], ...]
    prompts: tuple[tuple[str, str], ...]
    rows: tuple[tuple[int, int, int, float, float, float], ...] = field(repr=False)
    shard_size: int
    batch_size: int
    digest: str = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "digest", _plan_digest(self))

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
        """All items, in order."""
        return tuple(self.item(number) for number in range(1, self.images + 1))

    def item(self, number: int) -> PlannedItem:
        """The item of a number from 1."""
        source, prompt, seed, strength, guidance_scale, eta = self.rows[number - 1]
        image_id, file_name, width, height = self.sources[source]
        words, negative = self.prompts[prompt]
        return PlannedItem(
            number, image_id, file_name, words, negative, seed, strength, guidance_scale, eta, width, height
        )

    def numbers_of(self, shard: int) -> range:
        """The item numbers of a shard; a function of the plan alone, whoever works on it."""
        if not 0 <= shard < self.shards:
            raise ValueError(f"shard {shard} is not one of the plan's {self.shards} (0 to {self.shards - 1})")
        first = shard * self.shard_size + 1
        return range(first, min(first + self.shard_size, self.images + 1))

    def items_of(self, shard: int) -> tuple[PlannedItem, ...]:
        """The items of a shard, in order."""
        return tuple(self.item(number) for number in self.numbers_of(shard))


def make_plan(dataset: Dataset, images: int, seed: int, settings: Settings, identity: Mapping) -> Plan:
    """Decide a run.

    Sources come in an order drawn from the run seed, again and again, so that each serves equally often (give or take
    one). An item's seed depends on the run seed, its source's id and how often that source was used before.

    Args:
        dataset: the real images.
        images: how many to draw.
        seed: of the run.
        settings: `generation`, and `ldm.resolution`, decide the items.
        identity: what draws, as `Drawer.identity`; image sides are rounded to its `["ldm"]["multiple"]`.

    Raises:
        DatasetError: no image to start from.
        ConfigError: no image wanted, or a run seed that is not a whole number from 0.
    """
    if images < 1:
        raise ConfigError(f"The number of images must be at least 1, not {images}.")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"The run seed must be a whole number from 0, not {seed!r}.")
    if not dataset.images:
        raise DatasetError(f"{dataset.folder}: split '{dataset.split}' has no image to start from.")
    generation = settings.generation
    order = sorted(dataset.images, key=lambda image: (_hash(seed, "order", image.id), image.id))[:images]
    multiple = identity["ldm"]["multiple"]
    prompts = [(prompt_of(dataset, image, generation), generation.negative_prompt) for image in order]
    table = {pair: index for index, pair in enumerate(dict.fromkeys(prompts))}
    return Plan(
        spec=_spec(dataset, images, seed, settings, identity),
        categories=tuple((c.id, c.name, c.supercategory) for c in dataset.categories),
        sources=tuple(
            (image.id, image.file_name, *working_size(image.width, image.height, settings.ldm.resolution, multiple))
            for image in order
        ),
        prompts=tuple(table),
        rows=tuple(
            (
                k % len(order),
                table[prompts[k % len(order)]],
                *_drawn_numbers(_hash(seed, order[k % len(order)].id, k // len(order)), generation),
            )
            for k in range(images)
        ),
        shard_size=generation.shard_size,
        batch_size=generation.batch_size,
    )


def item_file(number: int) -> str:
    """File name of a generated image. It comes from the number alone, never from any text."""
    return f"{number:09d}.jpg"


def _spec(dataset: Dataset, images: int, seed: int, settings: Settings, identity: Mapping) -> dict:
    generation = {k: v for k, v in as_dict(settings.generation).items() if k not in NOT_IN_DIGEST}
    return {
        "seed": seed,
        "images": images,
        "data": dataset.digest(),
        "identity": dict(identity),
        "settings": {
            "generation": generation,
            "ldm": {"resolution": settings.ldm.resolution, "dtype": settings.ldm.dtype},
        },
    }


def _plan_digest(plan: Plan) -> str:
    """Covers the spec and the items made from it: a newer version that would plan other items is noticed too."""
    tables = hashlib.sha256()
    for name in ("categories", "sources", "prompts", "rows"):
        for entry in getattr(plan, name):
            tables.update(to_json([name, *entry]) + b"\n")
    return digest({"spec": dict(plan.spec), "items": tables.hexdigest()})


def _drawn_numbers(item_seed: int, settings: GenerationSettings) -> tuple[int, float, float, float]:
    """(seed, strength, guidance scale, eta), the last three uniform in the settings' ranges, to 4 decimals."""
    values = []
    for name in ("strength", "guidance", "eta"):
        low, high = getattr(settings, f"{name}_min"), getattr(settings, f"{name}_max")
        value = low + (high - low) * _hash(item_seed, name) / 2**53
        values.append(min(max(round(value, 4), low), high))
    return (item_seed, *values)


def _hash(*parts) -> int:
    """A uniform whole number from 0, below 2^53; the same in every version of every library."""
    text = ":".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode("ascii")).digest()[:8], "big") >> 11
