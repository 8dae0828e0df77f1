"""Writing: deterministic, atomic, never what could not be read; pycocotools scores it 1.0 against itself."""

import contextlib
import io
import json
import random
from dataclasses import replace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny_data import make_folder, make_picture, sound_document

from engine.data import files
from engine.data.dataset import Annotation, Category, Dataset, ImageRecord, read_dataset, subset, to_coco, write_dataset
from engine.errors import DatasetError


def _tiny(tmp_path) -> Dataset:
    return read_dataset(make_folder(tmp_path, sound_document()), "train")


def _write(dataset: Dataset, split: str):
    return write_dataset(dataset.folder, split, dataset.images, dataset.annotations, dataset.categories)


def _average_precision(path) -> float:
    """AP of the ground truth as its own perfect detections."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(path)
        keys = ("image_id", "category_id", "bbox")
        found = [{**{k: a[k] for k in keys}, "score": 1.0} for a in truth.dataset["annotations"] if not a["iscrowd"]]
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[0]


def _random_dataset(folder, seed: int) -> Dataset:
    rng = random.Random(seed)
    images = tuple(ImageRecord(n, f"{n}.png", 40, 30) for n in rng.sample(range(1, 1000), 12))
    categories = tuple(Category(n, f"class {n}") for n in rng.sample(range(1, 100), 4))
    annotations = []
    for n in rng.sample(range(1, 2**52), 60):
        x, y = rng.uniform(0, 30), rng.uniform(0, 20)
        w, h = rng.uniform(0.1, 40 - x), rng.uniform(0.1, 30 - y)
        crowd = int(rng.random() < 0.1)
        image, category = rng.choice(images), rng.choice(categories)
        annotations.append(Annotation(n, image.id, category.id, (x, y, w, h), w * h, crowd))
    return Dataset(folder, "train", images, categories, tuple(annotations))


@pytest.mark.parametrize("seed", range(3))
def test_a_written_dataset_scores_one_against_itself(tmp_path, seed):
    assert _average_precision(_write(_random_dataset(tmp_path, seed), "train")) == 1.0


def test_the_measure_can_fail(tmp_path):
    path = _write(_random_dataset(tmp_path, 0), "train")
    document = json.loads(path.read_text())
    document["annotations"][0]["id"] = 0
    path.write_text(json.dumps(document))
    assert _average_precision(path) < 1.0


def test_what_is_written_reads_back_equal(tmp_path):
    dataset = _tiny(tmp_path)
    _write(dataset, "val")
    again = read_dataset(tmp_path, "val")
    by_id = {"key": lambda record: record.id}
    assert sorted(again.images, **by_id) == sorted(dataset.images, **by_id)
    assert sorted(again.annotations, **by_id) == sorted(dataset.annotations, **by_id)
    assert sorted(again.categories, **by_id) == sorted(dataset.categories, **by_id)


def test_floats_survive_exactly(tmp_path):
    dataset = _random_dataset(tmp_path, 5)
    for image in dataset.images:
        make_picture(tmp_path / "images" / image.file_name)
    _write(dataset, "train")
    written = {a.id: a.bbox_xywh for a in read_dataset(tmp_path, "train").annotations}
    assert written == {a.id: a.bbox_xywh for a in dataset.annotations}


def test_equal_records_give_equal_bytes(tmp_path):
    dataset = _tiny(tmp_path)
    expected = _write(dataset, "val").read_bytes()
    shuffled = replace(dataset, images=dataset.images[::-1], annotations=dataset.annotations[::-1])
    assert _write(shuffled, "test").read_bytes() == expected
    other_types = tuple(
        replace(a, id=np.int64(a.id), bbox_xywh=tuple(np.float64(v) for v in a.bbox_xywh), area=np.float32(a.area))
        for a in dataset.annotations
    )
    assert _write(replace(dataset, annotations=other_types), "test").read_bytes() == expected
    other_keys = tuple(replace(i, extra=dict(reversed(list(i.extra.items())))) for i in dataset.images)
    assert _write(replace(dataset, images=other_keys), "test").read_bytes() == expected


def test_what_could_not_be_read_is_not_written(tmp_path):
    dataset = _tiny(tmp_path)
    before = (tmp_path / "train.json").read_bytes()
    for broken in (
        replace(dataset.annotations[0], id=0),
        replace(dataset.annotations[0], bbox_xywh=(0.0, 0.0, float("nan"), 1.0)),
        replace(dataset.annotations[0], image_id=99),
        replace(dataset.annotations[0], extra={"score": float("inf")}),
        replace(dataset.annotations[0], extra={"note": float("nan")}),
    ):
        with pytest.raises(DatasetError):
            write_dataset(tmp_path, "train", dataset.images, [broken], dataset.categories)
    assert (tmp_path / "train.json").read_bytes() == before


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch, step):
    dataset = _tiny(tmp_path)
    before = (tmp_path / "train.json").read_bytes()

    def full_disk(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, step, full_disk)
    with pytest.raises(OSError):
        _write(subset(dataset, [1]), "train")
    assert (tmp_path / "train.json").read_bytes() == before
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_subset_keeps_its_annotations_and_all_categories(tmp_path):
    dataset = _tiny(tmp_path)
    part = subset(dataset, [7])
    assert [image.id for image in part.images] == [7]
    assert [a.id for a in part.annotations] == [2]
    assert part.categories == dataset.categories
    assert subset(dataset, []).images == ()
    with pytest.raises(DatasetError, match="5"):
        subset(dataset, [1, 5])


def test_the_digest_follows_content_and_nothing_else(tmp_path):
    dataset = _tiny(tmp_path / "one")
    digest = dataset.digest()
    assert replace(dataset, images=dataset.images[::-1]).digest() == digest
    assert _tiny(tmp_path / "two").digest() == digest
    moved = replace(dataset.annotations[0], bbox_xywh=(1.0, 2.5, 10.0, 10.5))
    assert replace(dataset, annotations=(moved, *dataset.annotations[1:])).digest() != digest
    make_picture(tmp_path / "one" / "images" / "a.png", seed=9)
    assert dataset.digest() != digest


def test_to_coco_is_plain_json(tmp_path):
    document = sound_document()
    assert '"area": 25, "bbox": [0, 0, 5, 5], "category_id": 2' in _write(_tiny(tmp_path), "val").read_text()
    plain = json.loads(json.dumps(to_coco(_tiny(tmp_path))))
    assert plain["images"] == document["images"]
    assert plain["annotations"] == sorted(document["annotations"], key=lambda a: a["id"])
