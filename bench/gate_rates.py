"""How many good images do the gates stop, and how much of a collapsed batch? What the defaults of `review` rest on.

    python bench/gate_rates.py DATASET [--images 400 --ldm world --resolution 64]

Good images are every other real training image, judged as if a generator had drawn them against the rest, without a
source: whatever is stopped is a false alarm, or two real images that repeat each other. A collapsed batch is the same
images with one picture laid over each of them, which leaves so much of them. No test image decides anything here; they
are compared with, as a review does.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from engine.curation.gates import judge
from engine.data.dataset import Dataset, read_dataset, splits_of, subset, write_dataset
from engine.sections import LdmSettings, ReviewSettings
from tasks.review import features_of
from tasks.settings import open_settings

LEFT = (1.0, 0.7, 0.5, 0.3, 0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=400, help="training images to take, the first ones")
    parser.add_argument("--ldm", default="world")
    parser.add_argument("--resolution", type=int, default=64, help="short edge in pixels that the features are read at")
    args = parser.parse_args()
    real = {split: read_dataset(args.data, split) for split in splits_of(args.data)}
    ids = [image.id for image in real["train"].images[: args.images]]
    good, real["train"] = subset(real["train"], ids[::2]), subset(real["train"], ids[1::2])
    embed, _ = features_of(LdmSettings(id=open_settings(None, [], args.ldm)[0], resolution=args.resolution))
    settings = ReviewSettings()
    print(f"{len(good.images)} images as a batch, {len(real['train'].images)} real training images")
    print("\n| left of each image | judged by | batch | spread | pass | borderline | fail | reasons |")
    print("|---|---|---|---|---|---|---|---|")
    for left in LEFT:
        with tempfile.TemporaryDirectory() as folder:
            batch = good if left == 1.0 else overlaid(good, left, Path(folder))
            for name, by in (("hash", None), ("hash and features", embed)):
                judgement = judge(batch, real, settings, by)
                counts, spreads = judgement.counts(), judgement.batch.figures.values()
                spread = ", ".join(f"{figures['ratio']:.2f}" for figures in spreads)
                verdicts = " | ".join(str(number) for number in counts["verdicts"].values())
                reasons = Counter(counts["borderline"]) + Counter(counts["fail"])
                words = ", ".join(f"{reason} {number}" for reason, number in reasons.items())
                row = (f"{left:.0%}", name, judgement.batch.outcome, spread, verdicts, words)
                print(f"| {' | '.join(row)} |", flush=True)


def overlaid(dataset: Dataset, left: float, folder: Path) -> Dataset:
    """The images with the first of them laid over all, so that `left` of each shows."""
    (folder / "images").mkdir()
    top = dataset.load(dataset.images[0])
    for record in tqdm(dataset.images, desc="overlay", leave=False):
        picture = dataset.load(record)
        path = folder / "images" / record.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.blend(top.resize(picture.size), picture, left).save(path, quality=95)
    write_dataset(folder, "annotations", dataset.images, dataset.annotations, dataset.categories)
    return read_dataset(folder, "annotations")


if __name__ == "__main__":
    main()
