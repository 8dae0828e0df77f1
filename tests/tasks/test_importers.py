"""Formats that only FiftyOne reads: their boxes arrive unchanged, their faults meet the engine's own checks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from review_world import folders  # noqa: F401

from engine.data.dataset import read_dataset, splits_of
from engine.data.world import render_scene
from engine.errors import DatasetError
from tasks.fiftyone_connection import connected_fiftyone
from tasks.importers import FORMATS, import_with_fiftyone

# FiftyOne's own exporters write these; OpenLABEL has none
EXPORTED = ["kitti", "cvat", "bdd", "fiftyone", "fiftyone-detections"]
ROUNDED_BY = {"kitti": 0.501, "cvat": 0.501, "bdd": 0.051}  # pixels by which FiftyOne's exporters move a corner


@pytest.fixture(scope="module")
def fiftyone(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DE_HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("FIFTYONE_DATABASE_URI", raising=False)
        with connected_fiftyone() as module:
            yield module


def _export(fiftyone, train, out: Path, format: str) -> Path:
    """Write a split with FiftyOne's exporter."""
    names = {category.id: category.name for category in train.categories}
    dataset = fiftyone.Dataset()
    for image in train.images:
        detections = [
            fiftyone.Detection(
                label=names[a.category_id],
                bounding_box=[a.bbox_xywh[k] / (image.width, image.height)[k % 2] for k in range(4)],
            )
            for a in train.annotations_of(image.id)
        ]
        sample = fiftyone.Sample(str(train.image_path(image)), labels=fiftyone.Detections(detections=detections))
        dataset.add_sample(sample)
    kwargs = {} if format == "fiftyone" else {"label_field": "labels"}
    kind = getattr(fiftyone.types, FORMATS[format])
    dataset.export(export_dir=str(out), dataset_type=kind, progress=False, **kwargs)
    dataset.delete()
    return out


def _boxes(dataset) -> list:
    """(picture, class, box) of every annotation, in an order that does not depend on ids."""
    files = {image.id: Path(image.file_name).stem for image in dataset.images}
    names = {category.id: category.name for category in dataset.categories}
    return sorted((files[a.image_id], names[a.category_id], a.bbox_xywh) for a in dataset.annotations)


def _corners(box_xywh) -> tuple[float, ...]:
    x, y, width, height = box_xywh
    return (x, y, x + width, y + height)


@pytest.mark.parametrize("format", EXPORTED)
def test_boxes_arrive_unchanged(folders, fiftyone, tmp_path, format):  # noqa: F811
    train = read_dataset(folders.real, "train")
    source = _export(fiftyone, train, tmp_path / "source", format)
    report = import_with_fiftyone(source, tmp_path / "out", format)
    imported = read_dataset(tmp_path / "out", "train")
    expected, found = _boxes(train), _boxes(imported)
    assert [row[:2] for row in found] == [row[:2] for row in expected] and len(found) > 4
    for (*_, box), (*_, wanted) in zip(found, expected, strict=True):
        assert _corners(box) == pytest.approx(_corners(wanted), abs=ROUNDED_BY.get(format, 1e-6))
    assert report.format == format and report.images == {"train": 4}
    assert json.loads((tmp_path / "out" / "import_report.json").read_text())["format"] == format
    assert not [name for name in fiftyone.list_datasets() if name.startswith("import-")], "nothing stays in FiftyOne"
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_split_folders_become_splits_with_one_list_of_classes(folders, fiftyone, tmp_path):  # noqa: F811
    for split, name in (("train", "train"), ("val", "valid")):
        _export(fiftyone, read_dataset(folders.real, split), tmp_path / "source" / name, "kitti")
    report = import_with_fiftyone(tmp_path / "source", tmp_path / "out", "kitti")
    assert report.images == {"train": 4, "val": 3} and splits_of(tmp_path / "out") == ["train", "val"]
    for split in ("train", "val"):
        found = _boxes(read_dataset(tmp_path / "out", split))
        assert [row[:2] for row in found] == [row[:2] for row in _boxes(read_dataset(folders.real, split))]


@pytest.mark.parametrize("format", ["kitti", "bdd"])
def test_fractions_of_pixels_are_kept(folders, fiftyone, tmp_path, format):  # noqa: F811
    source = _export(fiftyone, read_dataset(folders.real, "train"), tmp_path / "source", format)
    if format == "kitti":
        for label in (source / "labels").iterdir():
            label.write_text("boat 0 0 0 10.125 11.25 20.625 31.5 0 0 0 0 0 0 0\n")
    else:
        labels = json.loads((source / "labels.json").read_text())
        for entry in labels:
            box = {"x1": 10.125, "y1": 11.25, "x2": 20.625, "y2": 31.5}
            entry["labels"] = [{"category": "boat", "id": 0, "attributes": {}, "box2d": box}]
        (source / "labels.json").write_text(json.dumps(labels))
    import_with_fiftyone(source, tmp_path / "out", format)
    found = read_dataset(tmp_path / "out", "train").annotations
    assert [a.bbox_xywh for a in found] == [pytest.approx((10.125, 11.25, 10.5, 20.25), abs=1e-9)] * 4


def test_cvat_is_imported_with_a_warning_since_fiftyone_rounds_it(folders, fiftyone, tmp_path, caplog):  # noqa: F811
    source = _export(fiftyone, read_dataset(folders.real, "train"), tmp_path / "source", "cvat")
    import_with_fiftyone(source, tmp_path / "out", "cvat")
    assert "whole pixels" in caplog.text


def test_openlabel(fiftyone, tmp_path):
    source = tmp_path / "source"
    (source / "data").mkdir(parents=True)
    render_scene(1).image.save(source / "data" / "a.png")
    box = {"name": "shape", "val": [16, 20, 8, 10]}  # centre x, centre y, width, height
    label = {
        "openlabel": {
            "metadata": {"schema_version": "1.0.0"},
            "streams": {"camera": {"uri": "a.png", "type": "camera"}},
            "objects": {"1": {"name": "one", "type": "boat", "object_data": {"bbox": [box]}}},
        }
    }
    (source / "labels.json").write_text(json.dumps(label))
    import_with_fiftyone(source, tmp_path / "out", "openlabel")
    [annotation] = read_dataset(tmp_path / "out", "train").annotations
    assert annotation.bbox_xywh == pytest.approx((12, 15, 8, 10))


def test_broken_pictures_and_boxes_meet_the_strict_import(folders, fiftyone, tmp_path):  # noqa: F811
    source = _export(fiftyone, read_dataset(folders.real, "train"), tmp_path / "source", "kitti")
    pictures = sorted((source / "data").iterdir())
    pictures[0].write_bytes(pictures[0].read_bytes()[:100])
    label = source / "labels" / f"{pictures[1].stem}.txt"
    label.write_text("boat 0 0 0 10 10 10 30 0 0 0 0 0 0 0\n" + label.read_text())  # no width
    report = import_with_fiftyone(source, tmp_path / "out", "kitti")
    assert report.images == {"train": 3}
    assert report.counts["images_refused"] == 1 and report.counts["boxes_zero_area"] == 1


def test_pictures_outside_the_source_are_refused(folders, fiftyone, tmp_path):  # noqa: F811
    source = _export(fiftyone, read_dataset(folders.real, "train"), tmp_path / "source", "kitti")
    picture = sorted((source / "data").iterdir())[0]
    shutil.move(picture, tmp_path / "secret.png")
    picture.symlink_to(tmp_path / "secret.png")
    with pytest.raises(DatasetError, match="leaves"):
        import_with_fiftyone(source, tmp_path / "out", "kitti")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["cvat", "bdd", "fiftyone", "openlabel", "kitti"])
def test_a_folder_of_another_format_is_one_clear_error(fiftyone, tmp_path, format):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "readme.txt").write_text("nothing")
    with pytest.raises(DatasetError, match=str(tmp_path / "source")):
        import_with_fiftyone(tmp_path / "source", tmp_path / "out", format)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_mistakes_are_found_before_fiftyone_starts(tmp_path):
    with pytest.raises(DatasetError, match="'tfrecord' is not known.*kitti"):
        import_with_fiftyone(tmp_path, tmp_path / "out", "tfrecord")
    with pytest.raises(DatasetError, match="no folder"):
        import_with_fiftyone(tmp_path / "nothing", tmp_path / "out", "kitti")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(DatasetError, match="not empty"):
        import_with_fiftyone(tmp_path, tmp_path / "full", "kitti")
