"""One trial of docs/experiments.md: a detector on real, or real and generated, images, scored on VALIDATION images.

    python bench/trials.py DATA --labels 150 --set detector.steps=1500 [--set detector.augment=strong]
    python bench/trials.py DATA --generated DIR --share 0.5 [--until 0.6] [--ratio-to 0.5] [--score 0.5 --ignore 0.3]
    python bench/trials.py DATA --generated DIR --labels-of DIR       # these pictures, the boxes of another labelling
    python bench/trials.py DATA --generated DIR --reference DIR       # agreement of two labellings of the same images

Datasets to try come from `de world`, `de subset`, `de generate`, `de label`, and `de baseline detector`, which gives an
oracle's labels where it learns from a world of 2000 scenes. Nothing here reads test.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import torch

from engine.curation.provenance import source_image_id
from engine.data.dataset import Dataset, ImageRecord, read_dataset, subset
from engine.detection.build import build_detector
from engine.detection.prediction import predict
from engine.detection.samples import BatchSource, Source
from engine.detection.schedule import OptimisationSettings
from engine.detection.training import fit
from engine.evaluation.coco_map import evaluate
from tasks.settings import EMBEDDED, open_settings

BINS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--labels", type=int, help="use the first so many training images")
    parser.add_argument("--generated", type=Path)
    parser.add_argument("--share", type=float, default=0.5, help="of each batch")
    parser.add_argument("--until", type=float, default=1.0, help="share of the steps after which real images are alone")
    parser.add_argument("--augment-generated", help="augmentation of the generated images; as detector.augment")
    parser.add_argument("--ratio-to", type=float, default=1.0, help="largest encode ratio")
    parser.add_argument("--score", type=float, help="boxes from this score on are labels; as they are where not given")
    parser.add_argument("--ignore", type=float, default=0.3, help="and from this one on ignore regions")
    parser.add_argument("--labels-of", type=Path, help="a dataset of the same sources whose boxes are taken instead")
    parser.add_argument(
        "--agree-with", type=Path, help="such a dataset: boxes that both have are averaged, others ignored"
    )
    parser.add_argument("--sources-of", type=Path, help="leave out images whose source is not in this dataset")
    parser.add_argument("--reference", type=Path, help="print the agreement with these labels by encode ratio instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    args = parser.parse_args()
    generated = None if args.generated is None else rethreshold(read_dataset(args.generated, "annotations"), args)
    if args.sources_of:
        known = set(by_source(read_labels(args.sources_of)))
        generated = subset(generated, {image.id for image in generated.images if source_of(image) in known})
    if args.labels_of:
        generated = relabel(generated, read_labels(args.labels_of))
    if args.agree_with:
        generated = agreed(generated, read_labels(args.agree_with))
    if args.reference:
        print_agreement(generated, read_dataset(args.reference, "annotations"))
        return
    settings = open_settings(None, args.overrides, EMBEDDED)[1].detector
    train, val = read_dataset(args.data, "train"), read_dataset(args.data, "val")
    if args.labels:
        train = subset(train, {image.id for image in train.images[: args.labels]})
    sources = [Source(train)]
    if generated is not None:
        drawn = Source(generated, args.share, last=args.until, augment=args.augment_generated)
        sources = [Source(train, 1 - args.share), drawn]
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    built = build_detector(settings, len(val.categories))
    built.module.train()
    batches = BatchSource.of(settings, sources, built.frame, args.seed, settings.steps)
    fit(built.module, batches, OptimisationSettings.of(settings), "trial", torch.device("cpu"))
    built.module.eval()
    scores = evaluate(val, predict(built.module.detect, val, built.frame))
    row = {key: round(100 * getattr(scores, key), 1) for key in ("map", "map50", "map75")}
    print(json.dumps({**{k: str(v) for k, v in vars(args).items() if v}, **row}))


def rethreshold(dataset: Dataset, args: argparse.Namespace) -> Dataset:
    """Its images up to an encode ratio, and its boxes by other thresholds than it was made with."""
    near = {i.id for i in dataset.images if i.extra.get("de", {}).get("strength", 0.0) <= args.ratio_to}
    dataset = subset(dataset, near)
    if args.score is None:
        return dataset
    boxes = tuple(
        dataclasses.replace(a, iscrowd=int(a.extra["score"] < args.score))
        for a in dataset.annotations
        if a.extra["score"] >= min(args.score, args.ignore)
    )
    return subset(dataclasses.replace(dataset, annotations=boxes), {a.image_id for a in boxes if not a.iscrowd})


def read_labels(folder: Path) -> Dataset:
    """Generated or labelled images where the folder has them, else its hand-labelled training images."""
    return read_dataset(folder, "annotations" if (folder / "annotations.json").is_file() else "train")


def source_of(image: ImageRecord) -> int:
    """Id of the picture that it was drawn from; its own if it was not drawn."""
    found = source_image_id(image)
    return image.id if found is None else found


def by_source(dataset: Dataset) -> dict[int, ImageRecord]:
    """Its image of each source; the last where there are several."""
    return {source_of(image): image for image in dataset.images}


def relabel(dataset: Dataset, labels: Dataset) -> Dataset:
    """Its pictures with the other dataset's boxes of the same source; pictures whose source that lacks are left out."""
    others = by_source(labels)
    kept = subset(dataset, {image.id for image in dataset.images if source_of(image) in others})
    boxes = tuple(
        dataclasses.replace(box, image_id=image.id)
        for image in kept.images
        for box in labels.annotations_of(others[source_of(image)].id)
    )
    return dataclasses.replace(kept, annotations=boxes)


def agreed(dataset: Dataset, labels: Dataset) -> Dataset:
    """Boxes that both labellings have (same class, IoU from 0.5 on), averaged; what only one has is ignored."""
    dataset, other = (relabel(dataset, one) for one in (dataset, labels))
    boxes = []
    for image in dataset.images:
        mine, theirs = (list(d.annotations_of(image.id)) for d in (dataset, other))
        boxes += [box for box in mine if box.iscrowd]
        theirs = [box for box in theirs if not box.iscrowd]
        for box in mine:
            if box.iscrowd:
                continue
            near = [b for b in theirs if b.category_id == box.category_id and iou(box, b) >= 0.5]
            if near:
                best = max(near, key=lambda b: iou(box, b))
                theirs.remove(best)
                mean = tuple((a + b) / 2 for a, b in zip(box.bbox_xywh, best.bbox_xywh, strict=True))
                boxes.append(dataclasses.replace(box, bbox_xywh=mean))
            else:
                boxes.append(dataclasses.replace(box, iscrowd=1))
        boxes += [dataclasses.replace(box, iscrowd=1) for box in theirs]
    return dataclasses.replace(dataset, annotations=tuple(boxes))


def print_agreement(labels: Dataset, reference: Dataset) -> None:
    """F1 at IoU 0.5 and 0.75 by encode ratio, of the images that both have; a box may answer for several."""
    both = {image.id for image in labels.images} & {image.id for image in reference.images}
    print("| encode ratio | images | F1 at 0.5 | at 0.75 |\n|---|---|---|---|")
    for low, high in zip(BINS, BINS[1:], strict=False):
        images = [i for i in labels.images if i.id in both and low <= i.extra["de"]["strength"] < high]
        hits, total = {0.5: 0, 0.75: 0}, 0
        for image in images:
            mine, theirs = ([a for a in d.annotations_of(image.id) if not a.iscrowd] for d in (labels, reference))
            total += len(mine) + len(theirs)
            for box in mine:
                best = max((iou(box, other) for other in theirs if other.category_id == box.category_id), default=0.0)
                for limit in hits:
                    hits[limit] += best >= limit
        if total:
            print(
                f"| {low} to {high} | {len(images)} | "
                + " | ".join(f"{200 * h / total:.1f}" for h in hits.values())
                + " |"
            )


def iou(one, other) -> float:
    """Of two annotations."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = one.bbox_xywh, other.bbox_xywh
    width = max(0.0, min(ax + aw, bx + bw) - max(ax, bx))
    height = max(0.0, min(ay + ah, by + bh) - max(ay, by))
    common = width * height
    return common / (aw * ah + bw * bh - common)


if __name__ == "__main__":
    main()
