import dataclasses

import torch

from engine.data.dataset import read_dataset
from engine.data.pixels import Frame
from engine.detection.samples import BatchSource, Source

FRAME = Frame(64, 16)


def test_a_batch_depends_on_seed_and_step_alone(world_folder):
    train = read_dataset(world_folder, "train")
    one, other = (BatchSource([Source(train)], FRAME, 4, seed=3) for _ in range(2))
    one.batch(0), one.batch(1)
    batch, again = one.batch(2), other.batch(2)
    assert torch.equal(batch.pixels, again.pixels) and batch.image_ids == again.image_ids
    assert all(torch.equal(a.boxes_xyxy, b.boxes_xyxy) for a, b in zip(batch.targets, again.targets, strict=True))
    assert not torch.equal(batch.pixels, BatchSource([Source(train)], FRAME, 4, seed=4).batch(2).pixels)


def test_shares_are_exact_on_average_and_batches_full(world_folder):
    train, val = read_dataset(world_folder, "train"), read_dataset(world_folder, "val")
    batches = BatchSource([Source(train, 0.9), Source(val, 0.1)], FRAME, 4, seed=0)
    counts = [batches._counts(step, (64, 64)) for step in range(1000)]
    assert all(sum(c) == 4 for c in counts)
    assert abs(sum(c[1] for c in counts) / 4000 - 0.1) < 0.005


def test_boxes_follow_the_picture_and_crowds_become_ignore_regions(world_folder):
    train = read_dataset(world_folder, "train")
    crowd = dataclasses.replace(
        train, annotations=tuple(dataclasses.replace(a, iscrowd=a.id % 2) for a in train.annotations)
    )
    ignored = objects = 0
    for step in range(20):
        batch = BatchSource([Source(crowd)], FRAME, 4, seed=0).batch(step)
        assert batch.pixels.shape == (4, 3, 64, 64) and batch.pixels.min() >= -1 and batch.pixels.max() <= 1
        for target in batch.targets:
            boxes = torch.cat([target.boxes_xyxy, target.ignore_xyxy])
            assert (boxes >= 0).all() and (boxes <= 64).all() and (boxes[:, 2:] - boxes[:, :2] >= 2).all()
            assert len(target.labels) == len(target.boxes_xyxy) and (target.labels >= 0).all()
            ignored, objects = ignored + len(target.ignore_xyxy), objects + len(target.boxes_xyxy)
    assert ignored and objects


def test_pictures_of_several_shapes_share_no_batch(tmp_path):
    from PIL import Image

    from engine.data.dataset import Annotation, Category, ImageRecord, write_dataset

    (tmp_path / "images").mkdir()
    records = []
    for i, size in enumerate([(64, 64), (128, 64), (90, 64), (64, 200)]):
        Image.new("RGB", size, (i * 40, 0, 0)).save(tmp_path / "images" / f"{i}.png")
        records.append(ImageRecord(i + 1, f"{i}.png", *size, {}))
    boxes = [Annotation(i + 1, i + 1, 1, (4.0, 4.0, 20.0, 20.0), 400.0, 0, {}) for i in range(4)]
    write_dataset(tmp_path, "train", records, boxes, [Category(1, "thing")])
    batches = BatchSource([Source(read_dataset(tmp_path, "train"))], FRAME, 2, seed=0)
    shapes = {tuple(batches.batch(step).pixels.shape[-2:]) for step in range(40)}
    assert shapes == {(64, 64), (64, 128), (64, 96), (128, 64)}
