"""What the frozen model makes of augmented images, computed once and kept on disk while an adapter trains.

"latents": the autoencoder's latents; noise is new at every step and the denoiser runs. "features": what the reader
reads, with one noise a view; nothing of the diffusion model runs in training. Both hold a few augmented views of each
image, float16, where training without a cache makes a new one every time.
"""

from __future__ import annotations

import functools
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from engine.adapter.adapter import LdmBackbone
from engine.data.files import write_atomically
from engine.data.pixels import to_model
from engine.detection.augment import augmented
from engine.detection.bank import Sample
from engine.detection.detector import Detector
from engine.detection.processes import joined
from engine.detection.samples import Batch, BatchSource
from engine.detection.targets import Target
from engine.errors import ModelError, RunFailed

log = logging.getLogger(__name__)

SHARD_BYTES = 256 * 2**20
_OPEN = 64  # shards held open at once


@dataclass(frozen=True)
class Shard:
    """Rows (sample, view) of one size, in one file."""

    path: Path
    rows: list[tuple[Sample, int]]


class FromCache(nn.Module):
    """The adapter as it trains on a cache: stored latents or features in, named losses out. Its weights are those of
    the adapter's reader."""

    def __init__(self, adapter: Detector, kind: str):
        super().__init__()
        self.backbone, self.reader, self.kind = adapter.backbone, adapter.reader, kind

    def forward(
        self, stored: list[Tensor], targets: Sequence[Target], texts: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """stored: one tensor of latents, or the levels."""
        ldm, first = self.backbone.ldm, stored[0]
        if self.kind == "latents":
            stride, levels = ldm.latent_stride, self.backbone.read(first.float(), texts)
        else:
            levels = stored
            stride = ldm.latent_stride if self.backbone.stem != "none" else ldm.taps[0].stride
        return self.reader.loss(levels, (first.shape[-2] * stride, first.shape[-1] * stride), targets)


class CachedBatches:
    """Batches of `source`, with views from the cache; which view depends on (seed, step) alone.

    `Batch.pixels` is a list of float16 tensors: what `FromCache` takes.
    """

    def __init__(self, source: BatchSource, shards: list[Shard], views: int):
        self.source, self.views = source, views
        self.seed, self.batch_size = source.seed, source.batch_size
        self.places: dict[tuple[int, int], tuple[Path, int]] = {}
        self.targets: dict[tuple[int, int], tuple[Target, int]] = {}
        self._opened = functools.lru_cache(_OPEN)(lambda path: safe_open(path, "pt").__enter__())
        for shard in shards:
            for row, ((sample, view), target) in enumerate(zip(shard.rows, _read_targets(shard.path), strict=True)):
                self.places[sample.image_id, view] = shard.path, row
                self.targets[sample.image_id, view] = target

    def batch(self, step: int, part: tuple[int, int] = (0, 1)) -> Batch:
        """The batch of a step, or a process's part of it; see `BatchSource.batch`."""
        generator = torch.Generator().manual_seed(self.seed * 5_915_587 + step)
        views = torch.randint(self.views, (self.batch_size,), generator=generator).tolist()
        mine = list(zip(self.source.choose(step), views, strict=True))[part[0] :: part[1]]
        keys = [(sample.image_id, view) for sample, view in mine]
        levels = [self._levels(key) for key in keys]
        targets = [self._target(key) for key in keys]
        samples = [sample for sample, _ in mine]
        stored = [torch.stack(level) for level in zip(*levels, strict=True)]
        return Batch(stored, targets, [s.image_id for s in samples], [s.text for s in samples])

    def _levels(self, key: tuple[int, int]) -> list[Tensor]:
        path, row = self.places[key]
        handle = self._opened(path)
        count = sum(name.startswith("level.") for name in handle.keys())
        return [handle.get_slice(f"level.{i}")[row : row + 1][0] for i in range(count)]

    def _target(self, key: tuple[int, int]) -> Target:
        target, begin = self.targets[key]
        if begin < 0:
            return target
        masks = self._opened(self.places[key][0]).get_slice("masks")[begin : begin + len(target.labels)]
        return Target(target.boxes_xyxy, target.labels, target.ignore_xyxy, masks)


def build_cache(
    folder: Path, kind: str, views: int, adapter: Detector, source: BatchSource, bfloat16: bool, digest: str
) -> CachedBatches:
    """Compute what is not in `folder` yet, `kind` "latents" or "features", and give the batches to train on.

    Args:
        digest: of all that decides what is stored; shards of another one are replaced.

    Raises:
        RunFailed: the disk lacks the room; nothing was written. ModelError: features too large for float16.
    """
    device = adapter.backbone.ldm.device
    training = adapter.training
    adapter.train()
    with joined(device, bfloat16) as accelerator:
        shards, need = _plan(folder, kind, views, adapter.backbone, source, accelerator)
        marks = [f"{digest}-{number}-{len(shard.rows)}" for number, shard in enumerate(shards)]
        missing = [i for i, shard in enumerate(shards) if _mark_of(shard.path) != marks[i]]
        need *= sum(len(shards[i].rows) for i in missing) / sum(len(shard.rows) for shard in shards)
        _check_room(folder, kind, need)
        folder.mkdir(parents=True, exist_ok=True)
        mine = missing[accelerator.process_index :: accelerator.num_processes]
        for number in tqdm(mine, desc=f"cache of {kind}, {_size(need)}", mininterval=5, disable=not mine):
            rows = _computed(shards[number].rows, kind, adapter.backbone, source, accelerator)
            write_atomically(shards[number].path, save(_packed(list(rows)), {"mark": marks[number]}))
        accelerator.wait_for_everyone()
    adapter.train(training)
    return CachedBatches(source, shards, views)


def _plan(
    folder: Path, kind: str, views: int, backbone: LdmBackbone, source: BatchSource, accelerator: Accelerator
) -> tuple[list[Shard], int]:
    """All shards, and the bytes that they will have. Computes one view of each size to measure it."""
    shards, need = [], 0
    for bucket in source.banks[0].buckets.values():
        rows = [(sample, view) for sample in bucket for view in range(views)]
        (levels, _), *_ = _computed(rows[:1], kind, backbone, source, accelerator)
        row, targets = sum(level.nbytes for level in levels), [_target_bytes(sample) for sample in bucket]
        count = max(1, SHARD_BYTES // (row + max(targets)))
        for start in range(0, len(rows), count):
            shards.append(Shard(folder / f"{len(shards):05d}.safetensors", rows[start : start + count]))
        need += row * len(rows) + views * sum(targets)
    return shards, need


def _target_bytes(sample: Sample) -> int:
    boxes = len(sample.boxes_xyxy)
    return 64 + 24 * boxes + (boxes * sample.image[0].numel() if sample.masks is not None else 0)


def _check_room(folder: Path, kind: str, need: float) -> None:
    home = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(home).free
    log.info("The cache of %s in %s needs %s; %s are free there", kind, folder, _size(need), _size(free))
    if need * 1.02 > free:
        raise RunFailed(
            f"The cache of {kind} in {folder} needs {_size(need)}, but only {_size(free)} are free there. Set "
            "adapter.cache_views lower, adapter.cache to latents (the smaller one) or none, or free some room."
        )


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _computed(
    rows: list[tuple[Sample, int]],
    kind: str,
    backbone: LdmBackbone,
    source: BatchSource,
    accelerator: Accelerator,
) -> Iterator[tuple[list[Tensor], Target]]:
    """Levels (C, h, w) float16 and target of every row, a training batch at a time."""
    others = list({sample.image_id: sample for sample, _ in rows}.values())
    for start in range(0, len(rows), source.batch_size):
        chunk = rows[start : start + source.batch_size]
        seeds = [(source.seed * 1_000_003 + sample.image_id) * 1_009 + view for sample, view in chunk]
        pairs = [
            augmented(sample, seed, source.augment, others) for (sample, _), seed in zip(chunk, seeds, strict=True)
        ]
        pixels = to_model(torch.stack([image for image, _ in pairs]))
        with torch.no_grad(), accelerator.autocast(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds[0] % 2**63)
            if kind == "latents":
                levels = [backbone.ldm.encode_images(pixels)]
            else:
                levels = backbone(pixels, [sample.text for sample, _ in chunk])
        levels = [level.half().cpu() for level in levels]
        if not all(torch.isfinite(level).all() for level in levels):
            raise ModelError(
                f"The diffusion model's {kind} do not fit into float16, so they cannot be cached. Set adapter.cache "
                "to none" + (", or to latents." if kind == "features" else ".")
            )
        for index, (_, target) in enumerate(pairs):
            yield [level[index] for level in levels], target


def _packed(rows: list[tuple[list[Tensor], Target]]) -> dict[str, Tensor]:
    """One shard's tensors: levels stacked, targets one behind the other with their numbers."""
    targets = [target for _, target in rows]
    tensors = {f"level.{i}": torch.stack(level) for i, level in enumerate(zip(*(ls for ls, _ in rows), strict=True))}
    tensors["boxes_xyxy"] = torch.cat([t.boxes_xyxy for t in targets])
    tensors["labels"] = torch.cat([t.labels for t in targets])
    tensors["ignore_xyxy"] = torch.cat([t.ignore_xyxy for t in targets])
    counts = [(len(t.labels), len(t.ignore_xyxy), t.masks is not None) for t in targets]
    tensors["counts"] = torch.tensor(counts, dtype=torch.int64)
    masks = [t.masks for t in targets if t.masks is not None]
    return {**tensors, "masks": torch.cat(masks)} if masks else tensors


def _mark_of(path: Path) -> str | None:
    try:
        with safe_open(path, "pt") as handle:
            return (handle.metadata() or {}).get("mark")
    except (OSError, SafetensorError):
        return None


def _read_targets(path: Path) -> list[tuple[Target, int]]:
    """Every row's target without masks, and where its masks begin (-1: it has none)."""
    with safe_open(path, "pt") as handle:
        counts, labels = handle.get_tensor("counts"), handle.get_tensor("labels")
        boxes, ignore = handle.get_tensor("boxes_xyxy"), handle.get_tensor("ignore_xyxy")
    objects, ignored = counts[:, 0].tolist(), counts[:, 1].tolist()
    begins = torch.where(counts[:, 2] > 0, (counts[:, 0] * counts[:, 2]).cumsum(0) - counts[:, 0], -1).tolist()
    parts = zip(boxes.split(objects), labels.split(objects), ignore.split(ignored), strict=True)
    return [(Target(*part), begin) for part, begin in zip(parts, begins, strict=True)]
