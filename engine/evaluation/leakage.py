"""Before anything is trained: does an image that is trained on repeat one that is scored on?

Two images repeat each other where their perceptual hashes differ in few bits, one of them mirrored or not, or, where a
diffusion model is given, where its features hardly differ. The defaults lie between what copies and what different
pictures show (`bench/leak_distances.py` prints both).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import ImageOps
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from engine.curation.perceptual import nearest, perceptual_hash
from engine.data.dataset import Dataset, read_dataset
from engine.data.pixels import Frame, batches_of
from engine.data.sources import UNLABELLED, has_unlabelled
from engine.errors import DatasetError
from engine.ldm.diffusion import LatentDiffusion, draw_noise, load_ldm
from engine.sections import CompareSettings, LdmSettings

log = logging.getLogger(__name__)
_SHOWN = 5
_BATCH = 32
_BLOCK = 1024  # images whose features are compared at a time


@dataclass(frozen=True)
class Leak:
    """An image of `where` that repeats one of the split `held_out`; how: in words."""

    where: str
    image: str
    held_out: str
    repeats: str
    how: str


def search_leaks(
    real: Path, training: Mapping[str, Dataset], test: Dataset, settings: CompareSettings, ldm: LdmSettings | None
) -> dict[str, dict[str, int]]:
    """`check_leakage` of all that a comparison on the dataset `real` trains on.

    Its val.json and unlabelled.json are compared with the test images too. Nothing trains on them, but choices are made
    on the one and the diffusion model may have seen the other: what is found is counted and logged.
    """
    held_out, beside = {"test": test}, {}
    if (real / "val.json").is_file():
        held_out["val"] = beside["val"] = read_dataset(real, "val")
    if has_unlabelled(real):
        beside[UNLABELLED] = read_dataset(real, UNLABELLED)
    if settings.leakage == "off":
        return {}
    model = _opened(ldm)
    told = dataclasses.replace(settings, leakage="report")
    return {
        **check_leakage(training, held_out, settings, *model),
        **check_leakage(beside, {"test": test}, told, *model),
    }


def search_val(
    training: Mapping[str, Dataset], val: Dataset, settings: CompareSettings, ldm: LdmSettings | None
) -> dict[str, dict[str, int]]:
    """`check_leakage` of what is trained on where something is chosen by validation images: what is found is counted
    and logged. It stops nothing: a choice that was too hopeful is found out on the test split."""
    return {} if settings.leakage == "off" else check_leakage(training, {"val": val}, settings, *_opened(ldm))


def _opened(ldm: LdmSettings | None) -> tuple[()] | tuple[LatentDiffusion, int]:
    """The last two arguments of `check_leakage`; none without a model."""
    return () if ldm is None else (load_ldm(ldm.id, ldm.revision, ldm.dtype, ldm.device), ldm.resolution)


def check_leakage(
    training: Mapping[str, Dataset],
    held_out: Mapping[str, Dataset],
    settings: CompareSettings,
    ldm: LatentDiffusion | None = None,
    resolution: int = 512,
) -> dict[str, dict[str, int]]:
    """{name of a training dataset: {what: number of its images}}, for results.json.

    Args:
        training, held_out: datasets by name; of the held-out ones "test" is what is scored on.
        ldm: its features are compared too, at so many pixels on the short edge.

    Raises:
        DatasetError: an image repeats a test image, and `compare.leakage` is stop. An image that repeats another
            held-out one is counted and logged.
    """
    if settings.leakage == "off":
        return {}
    leaks = find_leaks(training, held_out, settings.leak_distance)
    if ldm is not None:
        known = {(leak.where, leak.image, leak.held_out) for leak in leaks}
        alike = find_alike(training, held_out, settings.leak_similarity, ldm, Frame(resolution, ldm.alignment))
        leaks += [leak for leak in alike if (leak.where, leak.image, leak.held_out) not in known]
    for split in held_out:
        found = [leak for leak in leaks if leak.held_out == split]
        if not found:
            continue
        listed = "".join(
            f"\n  {leak.where}: {leak.image} repeats {leak.repeats} ({leak.how})" for leak in found[:_SHOWN]
        )
        more = f"\n  and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        text = f"{len(found)} images repeat images of {split}.json:{listed}{more}"
        if split == "test" and settings.leakage == "stop":
            raise DatasetError(
                f"{text}\nA score on images that were trained on says nothing. Take them out of one of the two (`de "
                "subset --without NAME` writes a dataset without a picture; for generated images: de review rejects "
                "what repeats held-out images, with --ldm by features too), or set compare.leakage=report to compare "
                "all the same; compare.leak_distance says how much alike is too much."
            )
        log.warning(text)
    return {
        where: {
            f"images that repeat {split} images": sum(leak.where == where and leak.held_out == split for leak in leaks)
            for split in held_out
        }
        for where in training
    }


def find_leaks(training: Mapping[str, Dataset], held_out: Mapping[str, Dataset], distance: int) -> list[Leak]:
    """Images whose hash differs in at most `distance` bits from that of a held-out image or of its mirror image."""
    references = {split: _hashes(dataset, split, mirrored=True) for split, dataset in held_out.items()}
    leaks = []
    for where, dataset in training.items():
        hashes = _hashes(dataset, where)
        for split, others in references.items():
            if not others:
                continue
            for image, (bits, place) in zip(dataset.images, nearest(hashes, others), strict=True):
                if bits <= distance:
                    other, mirror = held_out[split].images[place // 2], " mirrored" if place % 2 else ""
                    leaks.append(Leak(where, image.file_name, split, other.file_name, f"{bits} of 64 bits{mirror}"))
    return leaks


def find_alike(
    training: Mapping[str, Dataset],
    held_out: Mapping[str, Dataset],
    similarity: float,
    ldm: LatentDiffusion,
    frame: Frame,
) -> list[Leak]:
    """Images whose features have at least such a cosine with those of a held-out image."""
    everything = {name: dataset for name, dataset in {**training, **held_out}.items() if dataset.images}
    if not everything:
        return []
    features = {name: embed(dataset, ldm, frame, name) for name, dataset in everything.items()}
    together = torch.cat(list(features.values()))
    mean, deviation = together.mean(dim=0), together.std(dim=0) + 1e-6
    units = {name: functional.normalize((f - mean) / deviation, dim=1) for name, f in features.items()}
    leaks = []
    for where, dataset in training.items():
        for split, others in held_out.items():
            if where not in units or split not in units:
                continue  # no image
            # Block by block: all pairs of two large datasets at once would take tens of gigabytes.
            nearest_of = [(block @ units[split].T).max(dim=1) for block in units[where].split(_BLOCK)]
            best, places = (torch.cat(column).tolist() for column in zip(*nearest_of, strict=True))
            for image, value, place in zip(dataset.images, best, places, strict=True):
                if value >= similarity:
                    other = others.images[place].file_name
                    leaks.append(Leak(where, image.file_name, split, other, f"features alike to {value:.3f}"))
    return leaks


def embed(dataset: Dataset, ldm: LatentDiffusion, frame: Frame, name: str = "") -> Tensor:
    """(N, 2 C), the pooled features of every image, in the dataset's order."""
    rows: dict[int, Tensor] = {}
    with tqdm(total=len(dataset.images), desc=f"features of {name}", mininterval=2) as bar:
        for images, pixels in batches_of(dataset, frame, _BATCH):
            rows |= {image.id: row for image, row in zip(images, pooled_features(ldm, pixels), strict=True)}
            bar.update(len(images))
    return torch.stack([rows[image.id] for image in dataset.images]) if rows else torch.zeros(0, 0)


@torch.no_grad()
def pooled_features(ldm: LatentDiffusion, pixels: Tensor) -> Tensor:
    """(B, 2 C) float32 on the CPU: mean and maximum over the cells of the model's coarsest features at the lowest noise
    level, of images (B, 3, H, W) in [-1, 1]."""
    latents = ldm.encode_images(pixels.to(ldm.device))
    noise = draw_noise(latents.shape[1:], [torch.Generator().manual_seed(0)]).expand_as(latents)
    coarsest = ldm.features(latents, 1, noise, [""] * len(pixels))[-1].float().cpu()
    return torch.cat([coarsest.mean(dim=(2, 3)), coarsest.amax(dim=(2, 3))], dim=1)


def _hashes(dataset: Dataset, name: str, mirrored: bool = False) -> Sequence[int]:
    """A hash an image; with `mirrored` two, the second of its mirror image."""
    hashes = []
    for record in tqdm(dataset.images, desc=f"hashes of {name}", mininterval=2):
        image = dataset.load(record)
        views = [image, ImageOps.mirror(image)] if mirrored else [image]
        hashes += [perceptual_hash(view) for view in views]
    return hashes
