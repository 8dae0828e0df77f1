"""Export and import again: the same boxes, and nothing lost without a word."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile

import pytest
import yaml
from tiny_data import ROOT, make_picture

from engine.curation.decisions import Decisions, write_decisions
from engine.data import export, export_webdataset
from engine.data.convert import import_dataset
from engine.data.dataset import read_dataset, write_dataset
from engine.data.export import ExportOptions, export_dataset
from engine.data.export_names import FlatNames
from engine.data.records import Annotation, Category, ImageRecord
from engine.errors import ConfigError, DatasetError

FORMATS = ("coco", "voc", "yolo", "webdataset")
CATEGORIES = [Category(7, "red & white <cell>", "cell"), Category(2, "WBC"), Category(40, "never seen")]
NAMES = {1: "a/1.jpg", 2: "b/1.jpg", 3: "1.png", 4: "a_1.jpg", 5: "empty.v2.jpg", 6: "b/unsure.jpg"}
BOXES = [  # image, category, box, iscrowd
    (1, 7, (1.25, 2.5, 10.33, 10.75), 0),
    (1, 2, (20.77, 5.01, 20.23, 24.99), 0),
    (2, 2, (0.0, 0.0, 5.5, 5.5), 0),
    (3, 7, (0.0, 0.0, 61.0, 37.0), 0),
    (4, 7, (33.333333333, 1.1, 0.7, 0.9), 0),
    (6, 2, (3.0, 4.0, 20.0, 10.0), 1),
    (6, 7, (30.5, 4.25, 20.0, 10.0), 0),
]


def make_source(folder, split="train", numbers=tuple(NAMES)):
    images = [ImageRecord(n, NAMES[n], 61, 37, {"de": {"item": n}, "caption": f"picture {n}"}) for n in numbers]
    for n in numbers:
        make_picture(folder / "images" / NAMES[n], (61, 37), seed=n)
    boxes = [
        Annotation(k, i, c, b, b[2] * b[3], crowd, {"score": 0.5})
        for k, (i, c, b, crowd) in enumerate(BOXES, start=1)
        if i in numbers
    ]
    write_dataset(folder, split, images, boxes, CATEGORIES)
    return folder


def labels(folder, split="train"):
    """{sha256 of a picture: sorted [(class, box, iscrowd)]}: what must survive, whatever the names and ids are."""
    dataset = read_dataset(folder, split)
    names = {category.id: category.name for category in dataset.categories}
    return {
        hashlib.sha256(dataset.image_path(image).read_bytes()).hexdigest(): sorted(
            (names[a.category_id], a.iscrowd, *a.bbox_xywh) for a in dataset.annotations_of(image.id)
        )
        for image in dataset.images
    }


def assert_same_labels(got, expected, within):
    assert got.keys() == expected.keys()
    for picture, boxes in expected.items():
        assert [box[:2] for box in got[picture]] == [box[:2] for box in boxes]
        for box, wanted in zip(got[picture], boxes, strict=True):
            assert box[2:] == pytest.approx(wanted[2:], abs=within)


@pytest.mark.parametrize(("format", "within"), [("coco", 0), ("voc", 2e-6), ("yolo", 1e-4)])
def test_there_and_back(tmp_path, format, within):
    source = make_source(tmp_path / "data")
    report = export_dataset(source, tmp_path / "out", format)
    back = import_dataset(tmp_path / "out", tmp_path / "back", format)
    expected = labels(source)
    if format == "yolo":
        unsure = hashlib.sha256((source / "images" / NAMES[6]).read_bytes()).hexdigest()
        del expected[unsure]
    assert_same_labels(labels(tmp_path / "back"), expected, within)
    assert back.counts["images_refused"] == back.counts["boxes_clipped"] == 0
    assert report.splits["train"].images == len(expected)


def test_coco_keeps_all_that_the_dataset_says(tmp_path):
    source = make_source(tmp_path / "data")
    export_dataset(source, tmp_path / "out", "coco")
    import_dataset(tmp_path / "out", tmp_path / "back", "coco")
    assert (tmp_path / "back" / "train.json").read_bytes() == (source / "train.json").read_bytes()


def test_splits_stay_apart(tmp_path):
    source = make_source(tmp_path / "data", "train", (1, 3))
    make_source(source, "val", (2,))
    make_source(source, "test", (4, 5))
    for format in ("coco", "voc", "yolo"):
        export_dataset(source, tmp_path / format, format)
        import_dataset(tmp_path / format, tmp_path / f"{format}-back", format)
        for split in ("train", "val", "test"):
            assert_same_labels(labels(tmp_path / f"{format}-back", split), labels(source, split), 1e-4)
    report = export_dataset(source, tmp_path / "webdataset", "webdataset")
    assert [(shard["split"], shard["samples"]) for shard in report.shards] == [("train", 2), ("val", 1), ("test", 2)]


def test_yolo_never_makes_background_of_an_ignore_region_without_a_word(tmp_path):
    source = make_source(tmp_path / "data")
    report = export_dataset(source, tmp_path / "out", "yolo")
    assert (report.counts["images_left_out"], report.counts["regions_left_out"]) == (1, 1)
    assert "1 images left out" in report.text()
    assert len(list((tmp_path / "out" / "images" / "train").iterdir())) == 5
    report = export_dataset(source, tmp_path / "background", "yolo", ExportOptions(ignore_regions="background"))
    assert report.counts["images_left_out"] == 0 and report.counts["regions_as_background"] == 1
    assert "1 ignore regions not written" in report.text()
    (lines,) = [p.read_text() for p in (tmp_path / "background" / "labels" / "train").glob("b_unsure.txt")]
    assert lines.count("\n") == 1 and lines.startswith("1 ")  # the object; classes by rising id: WBC is 0


def test_negatives_classes_and_names(tmp_path):
    source = make_source(tmp_path / "data")
    report = export_dataset(source, tmp_path / "yolo", "yolo")
    assert report.counts["negatives"] == 1
    assert (tmp_path / "yolo" / "labels" / "train" / "empty.v2.txt").read_text() == ""
    assert [c["name"] for c in report.classes] == ["WBC", "red & white <cell>", "never seen"]
    pictures = sorted(path.name for path in (tmp_path / "yolo" / "images" / "train").iterdir())
    assert pictures == ["1.png", "a_1-2.jpg", "a_1.jpg", "b_1.jpg", "empty.v2.jpg"]
    assert report.counts["images_renamed"] == 3
    stems = sorted(path.stem for path in (tmp_path / "yolo" / "labels" / "train").iterdir())
    assert stems == sorted(os.path.splitext(name)[0] for name in pictures)


def test_flat_names_do_not_meet_on_any_disk():
    names = FlatNames()
    given = ["a/1.jpg", "A/1.jpg", "a_1.png", "1.jpg", "a_1-2.jpg"]
    assert [names.of(name) for name in given] == ["a_1.jpg", "A_1-2.jpg", "a_1-3.png", "1.jpg", "a_1-2-2.jpg"]
    names = FlatNames()  # a dot at the end of a stem is the suffix's for some and the stem's for others
    assert [names.of(name) for name in ("x.jpg", "x.", "x..png", "...")] == ["x.jpg", "x-2", "x-3.png", "image"]


def test_yolo_names_no_folder_so_that_readers_take_the_one_of_its_yaml(tmp_path):
    source = make_source(tmp_path / "data")
    export_dataset(source, tmp_path / "yolo", "yolo")
    content = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text())
    assert "path" not in content and content["train"] == "images/train"


@pytest.mark.parametrize("link", [False, True])
def test_two_splits_may_share_a_picture(tmp_path, link):
    source = make_source(tmp_path / "data", "train", (1, 2))
    make_source(source, "val", (2,))
    for format in FORMATS:
        report = export_dataset(source, tmp_path / format, format, ExportOptions(link=link))
        assert report.splits["train"].images == 2 and report.splits["val"].images == 1


def test_a_killed_export_leaves_no_folder_of_that_name_and_the_next_one_cleans_up(tmp_path):
    source = make_source(tmp_path / "data")
    code = (
        "import os, signal, sys\nfrom engine.data import export\n"
        "export.write_atomically = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "export.export_dataset(sys.argv[1], sys.argv[2], 'webdataset')\n"
    )
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "out").exists() and list(tmp_path.glob(".tmp-export-out-*/train-000000.tar"))
    export_dataset(source, tmp_path / "out", "webdataset")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]


def test_the_folder_that_was_filled_gets_the_name_itself(tmp_path, monkeypatch):
    """In one step: what copies its files there one by one shows half of them to whoever looks meanwhile."""
    filled = []

    def watched(work, *args):
        filled.append(work.stat().st_ino)
        export.write_coco(work, *args)
        assert not (tmp_path / "out").exists()

    monkeypatch.setitem(export.WRITERS, "coco", watched)
    export_dataset(make_source(tmp_path / "data"), tmp_path / "out", "coco")
    assert filled == [(tmp_path / "out").stat().st_ino]


def generated(folder):
    """A generated dataset: annotations.json, reviewed: 2 rejected, 4 undecided."""
    make_source(folder, "annotations")
    write_decisions(folder, read_dataset(folder, "annotations"), Decisions(frozenset({1, 3, 5, 6}), {2: "a copy"}))
    return folder


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("whole_bytes", [0, 1 << 30], ids=["streamed", "whole"])
def test_only_what_training_would_use(tmp_path, format, whole_bytes, monkeypatch):
    monkeypatch.setattr(export, "dataset_parts", lambda f, s: export_parts(f, s, 2, whole_bytes))
    monkeypatch.setattr(export, "image_ids", lambda f, s: export_ids(f, s, whole_bytes))
    source = generated(tmp_path / "data")
    options = ExportOptions(ignore_regions="background")
    report = export_dataset(source, tmp_path / "out", format, options)
    assert report.splits["train"].images == 4 and report.counts["images_rejected"] == 2
    everything = export_dataset(source, tmp_path / "all", format, ExportOptions(True, "background"))
    assert everything.splits["train"].images == 6
    (source / "annotations.json").write_bytes((source / "annotations.json").read_bytes() + b" ")
    with pytest.raises(DatasetError, match="another annotations.json"):
        export_dataset(source, tmp_path / "stale", format)
    assert not (tmp_path / "stale").exists()


export_parts, export_ids = export.dataset_parts, export.image_ids


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_bytes_again_linked_or_not(tmp_path, format):
    source = make_source(tmp_path / "data")

    def content(name, options):
        export_dataset(source, tmp_path / name, format, options)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        return {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in files}

    first = content("first", ExportOptions())
    assert first == content("second", ExportOptions(link=True))
    assert not any(str(tmp_path).encode() in value for value in first.values())
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".tmp")]


@pytest.mark.parametrize("format", FORMATS)
def test_a_cut_export_leaves_nothing(tmp_path, format, monkeypatch):
    source = make_source(tmp_path / "data")
    (source / "images" / NAMES[5]).unlink()
    with pytest.raises(DatasetError, match="no such file"):
        export_dataset(source, tmp_path / "out", format)
    make_picture(source / "images" / NAMES[5], (61, 37))
    dead = tmp_path / ".tmp-export-out-999999999"
    dead.mkdir()
    monkeypatch.setattr(export, "write_atomically", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(DatasetError, match="disk full"):
        export_dataset(source, tmp_path / "out", format)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_refusals(tmp_path):
    source = make_source(tmp_path / "data")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").touch()
    with pytest.raises(DatasetError, match="not empty"):
        export_dataset(source, tmp_path / "used", "coco")
    with pytest.raises(DatasetError, match="inside"):
        export_dataset(source, source / "out", "coco")
    with pytest.raises(ConfigError, match="'csv'"):
        export_dataset(source, tmp_path / "out", "csv")
    with pytest.raises(ConfigError, match="ignore_regions"):
        export_dataset(source, tmp_path / "out", "yolo", ExportOptions(ignore_regions="hide"))
    with pytest.raises(DatasetError, match="no dataset folder"):
        export_dataset(tmp_path / "used", tmp_path / "out", "coco")


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    source = make_source(tmp_path / "data")
    (tmp_path / "secret").write_text("secret")
    (source / "images" / NAMES[5]).unlink()
    (source / "images" / NAMES[5]).symlink_to(tmp_path / "secret")
    for format in FORMATS:
        with pytest.raises(DatasetError, match="link that leaves"):
            export_dataset(source, tmp_path / "out", format)
        assert not (tmp_path / "out").exists()


def test_class_names_that_no_xml_can_hold(tmp_path):
    make_picture(tmp_path / "data" / "images" / "a.jpg", (61, 37))
    boxes = [Annotation(1, 1, 1, (1, 1, 5, 5), 25, 0)]
    write_dataset(tmp_path / "data", "train", [ImageRecord(1, "a.jpg", 61, 37)], boxes, [Category(1, "bell\x07")])
    with pytest.raises(DatasetError, match="Class 1"):
        export_dataset(tmp_path / "data", tmp_path / "out", "voc")
    export_dataset(tmp_path / "data", tmp_path / "yolo", "yolo")
    import_dataset(tmp_path / "yolo", tmp_path / "back")
    assert read_dataset(tmp_path / "back", "train").categories[0].name == "bell\x07"


def test_webdataset_reads_its_own_shards(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    source = make_source(tmp_path / "data")
    report = export_dataset(source, tmp_path / "out", "webdataset", ExportOptions(shard_images=4))
    shards = [str(tmp_path / "out" / shard["name"]) for shard in report.shards]
    assert [shard["samples"] for shard in report.shards] == [4, 2]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=True).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == [f"{n:09d}" for n in NAMES]
    dataset = read_dataset(source, "train")
    for sample, image in zip(samples, dataset.images, strict=True):
        assert sample["png" if image.id == 3 else "jpg"].shape == (37, 61, 3)
        assert sample["json"]["de"] == image.extra["de"] and sample["json"]["file_name"] == image.file_name
        boxes = [(a.category_id, a.iscrowd, list(a.bbox_xywh)) for a in dataset.annotations_of(image.id)]
        assert [(a["category_id"], a["iscrowd"], a["bbox"]) for a in sample["json"]["annotations"]] == boxes
        assert all(a["score"] == 0.5 and a["category"] for a in sample["json"]["annotations"])


def test_shards_tell_the_truth_and_nothing_of_the_machine(tmp_path):
    source = make_source(tmp_path / "data")
    report = export_dataset(source, tmp_path / "out", "webdataset", ExportOptions(shard_bytes=1))
    assert json.loads((tmp_path / "out" / "export.json").read_bytes())["shards"] == report.shards
    assert [shard["name"] for shard in report.shards] == [f"train-{n:06d}.tar" for n in range(6)]  # one always fits
    for shard in report.shards:
        path = tmp_path / "out" / shard["name"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == shard["sha256"]
        assert path.stat().st_size == shard["bytes"]
        with tarfile.open(path) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)


def test_a_shard_has_its_name_only_when_it_is_whole(tmp_path, monkeypatch):
    source, seen = make_source(tmp_path / "data"), []
    add = export_webdataset._Shard.add

    def watched(shard, image, *rest):
        seen.append(sorted(path.name for path in shard._final.parent.iterdir()))
        add(shard, image, *rest)

    monkeypatch.setattr(export_webdataset._Shard, "add", watched)
    export_dataset(source, tmp_path / "out", "webdataset", ExportOptions(shard_images=4))
    assert seen[3] == [".tmp-train-000000.tar"]
    assert seen[5] == [".tmp-train-000001.tar", "train-000000.tar"]
