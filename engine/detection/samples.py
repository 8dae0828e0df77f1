"""Training batches from dataset folders: which images, at which step, in which view."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.config import digest
from engine.data.dataset import Dataset, ImageRecord, subset
from engine.data.pixels import Frame, to_model
from engine.detection.augment import augmented
from engine.detection.bank import Sample, SampleBank
from engine.detection.targets import Target
from engine.errors import ConfigError, DatasetError
from engine.sections import DetectorSettings

MIXED_UNTIL = 0.85  # share of the steps from which on "strong" shows whole images only, as YOLOX does at the end


@dataclass(frozen=True)
class Source:
    """A dataset to train on, its share of every batch, and when it is used.

    `first` and `last` are shares of the training's steps: of S steps it serves those from first x S to before last x S.
    `weights`, of each image's id, say how often an image is drawn in relation to others; None: all alike.
    `augment` is a key of `VIEWS` for this source alone; None: as the training's.
    """

    dataset: Dataset
    share: float = 1.0
    first: float = 0.0
    last: float = 1.0
    weights: Mapping[int, float] | None = None
    augment: str | None = None

    def weighted(self, weight: Callable[[ImageRecord], float]) -> Source:
        """With the weight that the function gives each image, from `extra["de"]` for example."""
        return dataclasses.replace(self, weights={image.id: weight(image) for image in self.dataset.images})

    def prepared(self, keep_negatives: bool, honour_ignore: bool) -> Source:
        """Without what a training does not take: images without objects, ignore regions.

        Raises:
            DatasetError: no image is left.
        """
        data = self.dataset
        if not honour_ignore:
            data = dataclasses.replace(data, annotations=tuple(a for a in data.annotations if not a.iscrowd))
        if not keep_negatives:
            shown = {a.image_id for a in data.annotations if not a.iscrowd}
            data = subset(data, shown)
            if not data.images:
                raise DatasetError(
                    f"{data.folder / data.split}.json: no image shows an object, and detector.keep_negatives is false: "
                    "there is nothing to train on. Set it to true, or leave this data out."
                )
        return dataclasses.replace(self, dataset=data)

    def recipe(self) -> dict:
        """All that decides what is drawn beside the data itself, json-ready: for digests and records."""
        weights = None if self.weights is None else digest(sorted(self.weights.items()))
        own = {} if self.augment is None else {"augment": self.augment}
        return {"share": self.share, "first": self.first, "last": self.last, "weights_sha256": weights, **own}


@dataclass(frozen=True)
class Batch:
    """Images (B, 3, H, W) float32 in [-1, 1], their targets, the images' ids, and words for a backbone that reads
    words (empty without)."""

    pixels: Tensor
    targets: list[Target]
    image_ids: list[int]
    texts: list[str]


class BatchSource:
    """Augmented batches from one or more datasets; every draw depends on (seed, step) alone, so training can resume.

    Args:
        sources: datasets with equal categories; the shares of those in use are normalised to one batch.
        text_of: the words of an image, for a backbone that reads words.
        masks: give targets the masks of their objects, for the images that have one of every object ("strong" views
            have none).
        augment: "none", "standard" or "strong".
        steps: of the whole training; needed where a source has a span.

    Raises:
        ConfigError: a span that is none, spans without `steps`, or steps at which no source is used.
        DatasetError: as `SampleBank`.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        frame: Frame,
        batch_size: int,
        seed: int,
        text_of: Callable[[ImageRecord], str] | None = None,
        masks: bool = False,
        augment: str = "standard",
        steps: int | None = None,
    ):
        self.spans = _spans(sources, steps)
        # One shape a batch: the others take the sizes of the first. A generated image is drawn at a size of the
        # diffusion model's, which seldom comes out at its source's working size, and would be in no batch otherwise.
        first = SampleBank(sources[0].dataset, frame, text_of, masks, sources[0].weights)
        rest = [SampleBank(s.dataset, frame, text_of, masks, s.weights, first.buckets) for s in sources[1:]]
        self.banks = [first, *rest]
        self.shares = [source.share for source in sources]
        self.augments = [source.augment or augment for source in sources]
        self.batch_size, self.seed, self.augment, self.steps = batch_size, seed, augment, steps

    @classmethod
    def of(
        cls, options: DetectorSettings, sources: Sequence[Source], frame: Frame, seed: int, steps: int
    ) -> BatchSource:
        """The batches of a detector's training of so many steps, as its settings say."""
        prepared = [source.prepared(options.keep_negatives, options.honour_ignore) for source in sources]
        return cls(prepared, frame, options.batch_size, seed, augment=options.augment, steps=steps)

    def batch(self, step: int, part: tuple[int, int] = (0, 1)) -> Batch:
        """The batch of a step, or of its samples every n-th from the i-th on for the part (i, n): the n parts of n
        processes together are the batch of one."""
        first, count = part
        chosen = self._choose(step)
        mine = list(enumerate(chosen))[first::count]
        mixed = self.steps is None or step < MIXED_UNTIL * self.steps
        # Mosaics are made of samples that are augmented alike.
        alike = {name: [sample for sample, other in chosen if other == name] for name in set(self.augments)}
        seed = self.seed * 1_000_003 + step
        pairs = [
            augmented(sample, seed * 4_099 + position, augment, alike[augment] if mixed else ())
            for position, (sample, augment) in mine
        ]
        pixels = to_model(torch.stack([image for image, _ in pairs]))
        samples = [sample for _, (sample, _) in mine]
        return Batch(pixels, [target for _, target in pairs], [s.image_id for s in samples], [s.text for s in samples])

    def choose(self, step: int) -> list[Sample]:
        """The samples of a step's batch, not augmented, all of one size."""
        return [sample for sample, _ in self._choose(step)]

    def _choose(self, step: int) -> list[tuple[Sample, str]]:
        """Each with how it is to be augmented."""
        generator = torch.Generator().manual_seed(self.seed * 7_368_787 + step)
        # The first source in use sets how often each size comes: of real and generated data, the real.
        leading = self.banks[next(i for i, share in enumerate(self._shares(step)) if share > 0)]
        sizes = list(leading.buckets)
        weights = torch.tensor([leading.weight(size) for size in sizes])
        size = sizes[int(torch.multinomial(weights, 1, generator=generator))]
        chosen = []
        for bank, augment, count in zip(self.banks, self.augments, self._counts(step, size), strict=True):
            chosen += [(sample, augment) for sample in bank.draw(count, size, generator)] if count else []
        return chosen

    def _shares(self, step: int) -> list[float]:
        """The share of each source at a step, 0 outside its span."""
        return [s if step in span else 0.0 for s, span in zip(self.shares, self.spans, strict=True)]

    def _counts(self, step: int, size: tuple[int, int]) -> list[int]:
        """How many samples each bank gives to this batch: shares to the nearest sample, exact on average."""
        shares = [s if size in bank.buckets else 0.0 for s, bank in zip(self._shares(step), self.banks, strict=True)]
        edges = np.cumsum([0.0, *shares]) / sum(shares) * self.batch_size
        # A different offset each step, so that a share of 0.1 of 16 gives 1 or 2 and 1.6 on average.
        offset = (step * 0.618033988749895) % 1.0
        ticks = np.floor(edges + offset)
        ticks[0], ticks[-1] = 0, self.batch_size
        return np.diff(ticks).astype(int).tolist()


def _spans(sources: Sequence[Source], steps: int | None) -> list[range]:
    """The steps at which each source is used."""
    if steps is None and any((source.first, source.last) != (0, 1) for source in sources):
        raise ConfigError("A source is used for a span of the training only: the number of steps must be given.")
    for source in sources:
        if not 0 <= source.first < source.last <= 1:
            raise ConfigError(f"A source is used from {source.first} to {source.last} of the steps: no span in 0 to 1.")
    end = 2**63 if steps is None else steps
    spans = [range(round(source.first * end), round(source.last * end)) for source in sources]
    # Where nothing is used, nothing is at the start or at the end of some span either.
    for step in {0, *(span.stop for span in spans)} - {end}:
        if not any(step in span and source.share > 0 for span, source in zip(spans, sources, strict=True)):
            raise ConfigError(
                f"No source of the training is used at step {step} of {steps}: its sources are used for "
                f"{', '.join(f'{s.first:g} to {s.last:g}' for s in sources)} of the steps. Let them cover all of it."
            )
    return spans
