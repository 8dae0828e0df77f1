"""How far apart are copies, and how far apart are different pictures? What the defaults of the leakage search rest on.

    python bench/leak_distances.py DATASET [--ldm world --resolution 64]

Different pictures are all pairs of a training and a validation image (test images are not looked at); copies are
training images, changed as copies are. `engine.evaluation.leakage` says what is measured.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from engine.curation.perceptual import hash_distances, perceptual_hash
from engine.data.dataset import Dataset, read_dataset
from engine.data.pixels import Frame, resize, to_model
from engine.evaluation.leakage import embed, pooled_features
from engine.ldm.diffusion import load_ldm
from tasks.settings import open_settings

COPIES = 50
BITS = (0, 2, 4, 6, 8, 10, 12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--ldm", default="world")
    parser.add_argument("--resolution", type=int, default=64, help="short edge in pixels that the features are read at")
    args = parser.parse_args()
    train, val = read_dataset(args.data, "train"), read_dataset(args.data, "val")
    hashes = [[perceptual_hash(picture) for picture in pictures(d, len(d.images))] for d in (train, val)]
    bits = hash_distances(*hashes)
    print(f"{bits.size} pairs of different pictures; pairs within so many bits:")
    print(", ".join(f"{limit}: {(bits <= limit).sum()}" for limit in BITS))
    ldm = load_ldm(open_settings(None, [], args.ldm)[0])
    frame = Frame(args.resolution, ldm.alignment)
    features = [embed(dataset, ldm, frame, dataset.split) for dataset in (train, val)]
    mean, deviation = torch.cat(features).mean(dim=0), torch.cat(features).std(dim=0) + 1e-6
    units = [functional.normalize((f - mean) / deviation, dim=1) for f in features]
    similarity = units[0] @ units[1].T
    print(f"features of different pictures: cosine at most {similarity.max():.3f}")
    print("\n| copy | bits: median | most | cosine: median | least |\n|---|---|---|---|---|")
    for name, change in CHANGES.items():
        changed = [change(picture) for picture in pictures(train, COPIES)]
        distances = [(perceptual_hash(c) ^ h).bit_count() for c, h in zip(changed, hashes[0], strict=False)]
        rows = torch.cat([read(ldm, frame, picture) for picture in changed])
        alike = (functional.normalize((rows - mean) / deviation, dim=1) * units[0][: len(rows)]).sum(dim=1)
        print(
            f"| {name} | {np.median(distances):.0f} | {max(distances)} | {alike.median():.3f} | {alike.min():.3f} |",
            flush=True,
        )


def pictures(dataset: Dataset, count: int) -> list[Image.Image]:
    """The first pictures of a dataset."""
    return [dataset.load(record) for record in dataset.images[:count]]


def read(ldm, frame: Frame, picture: Image.Image) -> torch.Tensor:
    """(1, 2 C) as `embed` gives it, of one picture."""
    return pooled_features(ldm, to_model(resize(picture, frame.size_of(picture.width, picture.height)))[None])


def jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    """Through a JPEG of a quality."""

    def change(picture: Image.Image) -> Image.Image:
        content = io.BytesIO()
        picture.save(content, "JPEG", quality=quality)
        return Image.open(content).convert("RGB")

    return change


def cropped(picture: Image.Image) -> Image.Image:
    """Without 2.5 % at every edge."""
    x, y = picture.width / 40, picture.height / 40
    return picture.crop((int(x), int(y), int(picture.width - x), int(picture.height - y)))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 70": jpeg(70),
    "JPEG, quality 30": jpeg(30),
    "half the size": lambda picture: picture.resize((picture.width // 2, picture.height // 2)),
    "brighter by a fifth": lambda picture: picture.point(lambda value: min(255, int(value * 1.2))),
    "cropped by 5 %": cropped,
}


if __name__ == "__main__":
    main()
