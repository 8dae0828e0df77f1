import dataclasses

import pytest
import torch

from engine.config import load_settings
from engine.data.dataset import read_dataset, subset
from engine.data.pixels import Frame
from engine.detection.samples import BatchSource, Source
from engine.errors import ConfigError, DatasetError

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


def test_generated_images_take_the_working_sizes_of_the_real_ones(tmp_path):
    """640 x 480 px pictures redrawn at 704 x 512 (512 px, multiples of 64) have another working size at 320 px."""
    from PIL import Image

    from engine.data.dataset import Annotation, Category, ImageRecord, write_dataset

    datasets = []
    for name, sizes in (("real", [(640, 480), (480, 640)]), ("drawn", [(704, 512), (512, 704), (704, 512)])):
        (tmp_path / name / "images").mkdir(parents=True)
        records = [ImageRecord(10 * len(datasets) + i, f"{i}.png", *size, {}) for i, size in enumerate(sizes, 1)]
        for record in records:
            Image.new("RGB", (record.width, record.height)).save(tmp_path / name / "images" / record.file_name)
        boxes = [Annotation(r.id, r.id, 1, (0.0, 0.0, r.width / 2, r.height), 4.0, 0, {}) for r in records]
        write_dataset(tmp_path / name, "train", records, boxes, [Category(1, "thing")])
        datasets.append(read_dataset(tmp_path / name, "train"))
    real, drawn = datasets
    frame = Frame(320, 16)
    assert frame.size_of(704, 512) != frame.size_of(640, 480)
    batches = BatchSource([Source(real, 0.5), Source(drawn, 0.5)], frame, 4, seed=0, augment="none")
    ids = []
    for step in range(40):
        batch = batches.batch(step)
        ids += batch.image_ids
        height, width = batch.pixels.shape[-2:]
        for target in batch.targets:
            assert target.boxes_xyxy[0].tolist() == pytest.approx([0, 0, width / 2, height])
    assert sum(number > 10 for number in ids) == len(ids) / 2
    assert {11, 12, 13} <= set(ids), "every drawn image is used"


def test_masks_follow_their_boxes_under_augmentation(world_folder):
    """Masks that fill their boxes still do, wherever flips and crops put them."""
    train = read_dataset(world_folder, "train")

    def filled(a):
        x, y, w, h = a.bbox_xywh
        return dataclasses.replace(a, extra={"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]})

    full = dataclasses.replace(train, annotations=tuple(filled(a) for a in train.annotations))
    batches = BatchSource([Source(full)], FRAME, 4, seed=0, masks=True)
    seen = 0
    for step in range(10):
        for target in batches.batch(step).targets:
            assert target.masks.dtype == torch.bool and target.masks.shape == (len(target.boxes_xyxy), 64, 64)
            for box, mask in zip(target.boxes_xyxy, target.masks, strict=True):
                rows, columns = torch.where(mask)
                tight = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                assert (tight - box).abs().max() < 2
                seen += 1
    assert seen > 50


def test_masks_change_nothing_else_and_cost_nothing_unasked(world_folder):
    train = read_dataset(world_folder, "train")
    plain, masked = (BatchSource([Source(train)], FRAME, 4, seed=0, masks=m).batch(3) for m in (False, True))
    assert torch.equal(plain.pixels, masked.pixels)
    for a, b in zip(plain.targets, masked.targets, strict=True):
        assert a.masks is None and b.masks is not None and torch.equal(a.boxes_xyxy, b.boxes_xyxy)


def test_only_images_whose_every_object_has_a_mask_have_masks(world_folder):
    train = read_dataset(world_folder, "train")
    first = train.images[0].id

    def masked(change) -> dict[int, bool]:
        annotations = tuple(change(a) for a in train.annotations)
        source = BatchSource([Source(dataclasses.replace(train, annotations=annotations))], FRAME, 64, 0, masks=True)
        batch = source.batch(0)
        return {i: t.masks is not None for i, t in zip(batch.image_ids, batch.targets, strict=True)}

    bare = lambda a: dataclasses.replace(a, extra={})  # noqa: E731
    assert not any(masked(bare).values())
    assert masked(lambda a: bare(a) if a.image_id == first else a) == {i.id: i.id != first for i in train.images}
    crowd = masked(lambda a: dataclasses.replace(bare(a), iscrowd=1) if a.image_id == first else a)
    assert all(crowd.values())  # an ignore region needs no mask


def test_a_malformed_segmentation_names_its_annotation(world_folder):
    train = read_dataset(world_folder, "train")
    bad = dataclasses.replace(train.annotations[2], extra={"segmentation": [[1, 2, 3]]})
    broken = dataclasses.replace(train, annotations=(*train.annotations[:2], bad, *train.annotations[3:]))
    BatchSource([Source(broken)], FRAME, 2, seed=0)
    with pytest.raises(DatasetError, match=rf"annotation {bad.id} .*three or more.*remove the key"):
        BatchSource([Source(broken)], FRAME, 2, seed=0, masks=True)


def ids(batches: BatchSource, steps) -> list[list[int]]:
    return [[sample.image_id for sample in batches.choose(step)] for step in steps]


def test_weighted_images_come_in_proportion(world_folder):
    train = read_dataset(world_folder, "train")
    first, second, *rest = (image.id for image in train.images)
    weights = {first: 3.0, second: 1.0, **dict.fromkeys(rest, 0.0)}
    source = Source(train).weighted(lambda image: weights[image.id])
    drawn = sum(ids(BatchSource([source], FRAME, 8, seed=0), range(400)), [])
    assert set(drawn) == {first, second} and abs(drawn.count(first) / len(drawn) - 0.75) < 0.02


@pytest.mark.parametrize("weights, problem", [({}, "is None"), ({0: -1.0}, "is -1"), ({0: 0.0}, "no image")])
def test_weights_that_say_nothing_are_refused(world_folder, weights, problem):
    train = read_dataset(world_folder, "train")
    source = Source(train, weights={image.id: value for image in train.images for value in weights.values()})
    with pytest.raises(DatasetError, match=problem):
        BatchSource([source], FRAME, 2, seed=0)


def test_sources_are_used_in_their_span_of_the_steps(world_folder):
    train, val = read_dataset(world_folder, "train"), read_dataset(world_folder, "val")
    val = dataclasses.replace(  # ids of its own, to be told from the others
        val,
        images=tuple(dataclasses.replace(i, id=i.id + 100) for i in val.images),
        annotations=tuple(dataclasses.replace(a, image_id=a.image_id + 100) for a in val.annotations),
    )
    mixed = BatchSource([Source(train, 0.5), Source(val, 0.5, last=0.7)], FRAME, 4, seed=0, steps=10)
    assert [sum(i > 100 for i in batch) for batch in ids(mixed, range(10))] == [2] * 7 + [0] * 3
    turns = BatchSource([Source(val, last=0.25), Source(train, first=0.25)], FRAME, 4, seed=0, steps=9)
    assert [sum(i > 100 for i in batch) for batch in ids(turns, range(9))] == [4] * 2 + [0] * 7
    assert ids(turns, [5]) == ids(turns, [5])  # by (seed, step) alone


def test_spans_that_leave_steps_without_data_are_refused(world_folder):
    train = read_dataset(world_folder, "train")
    with pytest.raises(ConfigError, match="at step 5 of 10"):
        BatchSource([Source(train, last=0.5), Source(train, first=0.6)], FRAME, 2, seed=0, steps=10)
    with pytest.raises(ConfigError, match="at step 0 of 10"):
        BatchSource([Source(train, 0.0, last=0.5), Source(train, first=0.5)], FRAME, 2, seed=0, steps=10)
    with pytest.raises(ConfigError, match="number of steps"):
        BatchSource([Source(train, last=0.5)], FRAME, 2, seed=0)
    with pytest.raises(ConfigError, match="no span"):
        BatchSource([Source(train, first=0.5, last=0.5)], FRAME, 2, seed=0, steps=10)


def options(**changes):
    return dataclasses.replace(load_settings().detector, batch_size=4, **changes)


def test_negatives_and_ignore_regions_by_the_settings(world_folder):
    train = read_dataset(world_folder, "train")
    empty, crowd = train.images[0].id, train.images[1].id
    annotations = tuple(
        dataclasses.replace(a, iscrowd=int(a.image_id == crowd)) for a in train.annotations if a.image_id != empty
    )
    source = Source(dataclasses.replace(train, annotations=annotations))

    def seen(**changes) -> tuple[set[int], int]:
        batches = [BatchSource.of(options(**changes), [source], FRAME, 0, 30).batch(step) for step in range(30)]
        return {i for b in batches for i in b.image_ids}, sum(len(t.ignore_xyxy) for b in batches for t in b.targets)

    everything = {image.id for image in train.images}
    images, ignored = seen()
    assert images == everything and ignored
    assert seen(keep_negatives=False)[0] == everything - {empty, crowd}
    assert seen(honour_ignore=False) == (everything, 0)
    nothing = Source(dataclasses.replace(train, annotations=()))
    with pytest.raises(DatasetError, match="keep_negatives"):
        BatchSource.of(options(keep_negatives=False), [nothing], FRAME, 0, 30)


def test_a_source_can_have_views_of_its_own(world_folder):
    """With "none" its images come as they are, whatever the others become."""
    train = read_dataset(world_folder, "train")
    one, other = (subset(train, {image.id}) for image in train.images[:2])
    frame = Frame(64, 16)
    mixed = BatchSource([Source(one, 0.5), Source(other, 0.5, augment="none")], frame, 4, seed=0, augment="strong")
    plain = BatchSource([Source(other)], frame, 4, seed=0, augment="none").batch(0)
    changed = 0
    for step in range(3):
        batch = mixed.batch(step)
        for image_id, pixels in zip(batch.image_ids, batch.pixels, strict=True):
            same = torch.equal(pixels, plain.pixels[0])
            assert same == (image_id == other.images[0].id)
            changed += not same
    assert changed
    assert "augment" in Source(one, augment="none").recipe() and "augment" not in Source(one).recipe()
