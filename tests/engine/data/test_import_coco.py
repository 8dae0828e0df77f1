"""COCO in: what each rule changes, counts and refuses."""

import json
import shutil

import pytest
from tiny_data import make_folder, make_picture, shared_data, sound_document

from engine.data.convert import import_dataset
from engine.data.dataset import read_dataset, splits_of, to_coco
from engine.data.import_report import CHANGES, REFUSALS
from engine.data.validate import validate_dataset
from engine.errors import DatasetError


def _import(tmp_path, document, **options):
    """Import one document; the report, the counts that are not 0, and the dataset."""
    src = make_folder(tmp_path / "src", document)
    report = import_dataset(src, tmp_path / "out", **options)
    return report, {k: n for k, n in report.counts.items() if n}, read_dataset(tmp_path / "out", "train")


def test_a_sound_dataset_comes_through_unchanged(tmp_path):
    report, counts, dataset = _import(tmp_path, sound_document())
    assert counts == {} and report.format == "coco"
    assert to_coco(dataset) == to_coco(read_dataset(tmp_path / "src", "train"))
    for image in dataset.images:
        assert dataset.image_path(image).read_bytes() == (tmp_path / "src" / "images" / image.file_name).read_bytes()
    assert dataset.digest() == read_dataset(tmp_path / "src", "train").digest()


def test_importing_an_import_changes_nothing(tmp_path):
    _import(tmp_path, sound_document())
    report = import_dataset(tmp_path / "out", tmp_path / "again")
    assert [k for k, n in report.counts.items() if n] == ["files_ignored"]  # the first import's report
    assert (tmp_path / "out" / "train.json").read_bytes() == (tmp_path / "again" / "train.json").read_bytes()


def _with(**values):
    def change(document):
        document["annotations"][0].update(values)

    return change


def _without(key):
    def change(document):
        del document["annotations"][0][key]

    return change


BOX = (1.0, 2.5, 10.0, 10.25)
# case -> (change to annotation 3 of the sound document, counts, its bbox afterwards or None)
RULES = {
    "zero area": (_with(bbox=[5, 5, 0, 4]), {"boxes_zero_area": 1}, None),
    "negative": (_with(bbox=[5, 5, -2, 4]), {"boxes_zero_area": 1}, None),
    "sticks out": (_with(bbox=[30, 20, 20, 20]), {"boxes_clipped": 1}, (30, 20, 10, 10)),
    "sticks out above": (_with(bbox=[-5, -5, 20, 20]), {"boxes_clipped": 1}, (0, 0, 15, 15)),
    "sticks out by rounding": (_with(bbox=[30, 20, 10.25, 10]), {"boxes_trimmed": 1}, (30, 20, 10, 10)),
    "outside": (_with(bbox=[50, 20, 20, 20]), {"boxes_outside": 1}, None),
    "touching outside": (_with(bbox=[40, 20, 20, 20]), {"boxes_outside": 1}, None),
    "three numbers": (_with(bbox=[50, 20, 20]), {"boxes_malformed": 1}, None),
    "text": (_with(bbox=["1", 20, 20, 5]), {"boxes_malformed": 1}, None),
    "null": (_with(bbox=None), {"boxes_malformed": 1}, None),
    "no bbox": (_without("bbox"), {"boxes_malformed": 1}, None),
    "NaN": (_with(bbox=[float("nan"), 1, 2, 3]), {"boxes_malformed": 1}, None),
    "unknown category": (_with(category_id=4), {"boxes_unknown_category": 1}, None),
    "category as text": (_with(category_id="2"), {"boxes_unknown_category": 1}, None),
    "orphan": (_with(image_id=55), {"boxes_unknown_image": 1}, None),
    "image_id as text": (_with(image_id="1"), {"boxes_unknown_image": 1}, None),
    "score": (_with(score=1.01), {"boxes_bad_score": 1}, None),
    "no iscrowd": (_without("iscrowd"), {"iscrowd_filled": 1}, BOX),
    "odd iscrowd": (_with(iscrowd="no"), {"iscrowd_filled": 1}, BOX),
    "iscrowd as bool": (_with(iscrowd=False), {}, BOX),
    "no area": (_without("area"), {"area_filled": 1}, BOX),
    "area 0": (_with(area=0), {"area_filled": 1}, BOX),
    "id 0": (_with(id=0), {"annotation_ids_renumbered": 1}, BOX),
    "id twice": (_with(id=2), {"annotation_ids_renumbered": 1}, BOX),
    "id as text": (_with(id="9"), {"annotation_ids_renumbered": 1}, BOX),
    "id too large": (_with(id=2**53), {"annotation_ids_renumbered": 1}, BOX),
    "no id": (_without("id"), {}, BOX),
}


@pytest.mark.parametrize("case", RULES)
def test_rules_for_boxes(tmp_path, case):
    change, expected, bbox = RULES[case]
    document = sound_document()
    change(document)
    report, counts, dataset = _import(tmp_path, document)
    assert counts == expected
    ids = {a.id for a in dataset.annotations}
    assert len(ids) == len(dataset.annotations) == report.boxes["train"] == (2 if bbox is None else 3)
    assert {1, 2} <= ids or expected == {"annotation_ids_renumbered": 1}
    if bbox is not None:
        own = [a for a in dataset.annotations if a.category_id == 90]
        assert own[0].bbox_xywh == bbox and own[0].iscrowd == 0
        assert own[0].area == pytest.approx(min(102.5, bbox[2] * bbox[3]))
    assert not [f for f in validate_dataset(tmp_path / "out") if f.severity == "error"]
    if next(iter(expected), "") in REFUSALS:
        assert "Left out: nothing" not in report.text() and "train.json annotation 3" in report.text()


def test_the_area_of_a_mask_is_kept(tmp_path):
    document = sound_document()
    document["annotations"][0]["area"] = 61.25
    _, counts, dataset = _import(tmp_path, document)
    assert counts == {} and {a.id: a.area for a in dataset.annotations}[3] == 61.25


def test_category_ids_are_kept_where_valid(tmp_path):
    document = sound_document()
    document["categories"] += [{"id": 0, "name": "none"}, {"id": "x", "name": "text"}, {"id": 5, "name": "RBC"}]
    document["annotations"][0]["category_id"] = 0
    document["annotations"][1]["category_id"] = 5
    _, counts, dataset = _import(tmp_path, document)
    assert counts == {"category_ids_renumbered": 2, "categories_merged": 1}
    assert {c.name: c.id for c in dataset.categories} == {"RBC": 2, "WBC": 90, "none": 1, "text": 3}
    assert {a.id: a.category_id for a in dataset.annotations} == {3: 1, 1: 2, 2: 2}


@pytest.mark.parametrize("declared", [(100, 30), (0, 0), (None, None), ("40", "30")])
def test_a_wrong_declared_size_is_corrected(tmp_path, declared):
    document = sound_document()
    document["images"][0].update(width=declared[0], height=declared[1])
    _, counts, dataset = _import(tmp_path, document)
    assert counts == {"sizes_corrected": 1}
    assert {(i.width, i.height) for i in dataset.images} == {(40, 30)}
    assert len(dataset.annotations) == 3


def test_boxes_of_a_copy_of_another_size_are_not_believed(tmp_path):
    document = sound_document()
    document["images"][0].update(width=80, height=60)
    document["annotations"][0]["bbox"] = [50, 20, 20, 20]
    report, counts, dataset = _import(tmp_path, document)
    assert counts == {"images_refused": 1}
    assert [i.id for i in dataset.images] == [7] and [a.id for a in dataset.annotations] == [2]
    assert "declared 80 x 60, decoded 40 x 30" in report.text()


UNUSABLE = ["../secret.png", "ABSOLUTE", "link.png", "a\x00.png", "missing.png", "text.jpg", 5, None]


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_pictures_are_left_out_with_their_boxes(tmp_path, name):
    document = sound_document()
    secret = make_picture(tmp_path / "secret.png")
    document["images"][0]["file_name"] = str(secret) if name == "ABSOLUTE" else name
    make_folder(tmp_path / "src", document)
    (tmp_path / "src" / "images" / "link.png").symlink_to(secret)
    (tmp_path / "src" / "images" / "text.jpg").write_text("no picture")
    report, counts, dataset = _import(tmp_path, document)
    assert counts == {"images_refused": 1}
    assert [i.id for i in dataset.images] == [7] and [a.id for a in dataset.annotations] == [2]
    assert report.refusals[0].where.startswith("train.json image 1") and report.refusals[0].detail
    stored = {path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert secret.read_bytes() not in stored


def test_a_truncated_picture_is_left_out(tmp_path):
    src = make_folder(tmp_path / "src", sound_document())
    path = src / "images" / "a.png"
    path.write_bytes(path.read_bytes()[:-100])
    report = import_dataset(src, tmp_path / "out")
    assert report.counts["images_refused"] == 1 and "a.png cannot be decoded" in report.text()


def test_windows_names_are_read_with_slashes(tmp_path):
    document = sound_document()
    document["images"][1]["file_name"] = "sub\\b.png"
    _, counts, dataset = _import(tmp_path, document)
    assert [i.file_name for i in dataset.images] == ["a.png", "sub/b.png"]


def test_two_entries_of_one_picture_are_joined(tmp_path):
    document = sound_document()
    document["images"].append({**document["images"][0], "id": 8})
    document["annotations"].append({**document["annotations"][0], "id": 9, "image_id": 8})  # the same box
    document["annotations"].append({**document["annotations"][0], "id": 10, "image_id": 8, "bbox": [2, 2, 5, 5]})
    _, counts, dataset = _import(tmp_path, document)
    assert counts == {"images_repeated": 1}
    assert sorted(a.id for a in dataset.annotations_of(1)) == [1, 3, 10]


def test_images_that_share_an_id_are_left_out(tmp_path):
    document = sound_document()
    document["images"][1]["id"] = 1
    document["images"].append({"id": 5, "file_name": "c.png", "width": 40, "height": 30})
    make_picture(tmp_path / "src" / "images" / "c.png")
    report, counts, dataset = _import(tmp_path, document)
    assert counts == {"images_refused": 2, "boxes_unknown_image": 1}
    assert [i.file_name for i in dataset.images] == ["c.png"]


def test_image_ids_from_0_and_as_text_are_renumbered(tmp_path):
    document = sound_document()
    document["images"][0]["id"] = 0
    document["images"][1]["id"] = "1"
    for annotation, image_id in zip(document["annotations"], (0, 0, "1"), strict=True):
        annotation["image_id"] = image_id
    _, counts, dataset = _import(tmp_path, document)
    assert counts == {"image_ids_renumbered": 2}
    assert {i.file_name: i.id for i in dataset.images} == {"a.png": 1, "sub/b.png": 2}
    assert [a.id for a in dataset.annotations_of(2)] == [2]


def test_every_kind_of_change_has_words(tmp_path):
    report, _, _ = _import(tmp_path, sound_document())
    assert set(report.counts) == {*CHANGES, *REFUSALS}
    stored = json.loads((tmp_path / "out" / "import_report.json").read_text())
    assert stored["counts"] == report.counts and str(tmp_path) not in json.dumps(stored)


# folder layouts


def _split_document(name: str, image_id: int) -> dict:
    document = sound_document()
    document["images"] = [{"id": image_id, "file_name": name, "width": 40, "height": 30}]
    document["annotations"] = [{**document["annotations"][0], "image_id": image_id, "id": 0}]
    return document


def test_splits_in_folders_with_equal_names_and_ids(tmp_path):
    src = tmp_path / "src"
    for number, split in enumerate(("train", "valid", "test")):
        make_picture(src / split / "0.png", seed=number)
        (src / split / "_annotations.coco.json").write_text(json.dumps(_split_document("0.png", 0)))
    report = import_dataset(src, tmp_path / "out")
    assert splits_of(tmp_path / "out") == ["train", "val", "test"]
    datasets = [read_dataset(tmp_path / "out", split) for split in splits_of(tmp_path / "out")]
    names = [d.images[0].file_name for d in datasets]
    assert len({d.images[0].id for d in datasets}) == len(set(names)) == 3
    for number, dataset in enumerate(datasets):
        expected = (src / ("train", "valid", "test")[number] / "0.png").read_bytes()
        assert dataset.image_path(dataset.images[0]).read_bytes() == expected
    assert report.counts["images_renamed"] == 2
    assert report.counts["categories_merged"] == report.counts["category_ids_renumbered"] == 0
    assert all(f.severity == "warning" for f in validate_dataset(tmp_path / "out"))


def test_the_layout_of_coco_itself_with_captions(tmp_path):
    src = tmp_path / "src"
    for split, image_id in (("train", 5), ("val", 9)):
        make_picture(src / f"{split}2017" / f"{image_id}.png", seed=image_id)
        (src / "annotations").mkdir(exist_ok=True)
        document = _split_document(f"{image_id}.png", image_id)
        (src / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(document))
        captions = [{"id": n, "image_id": image_id, "caption": f"caption {n}\n"} for n in (4, 3)]
        text = json.dumps({"images": [], "annotations": captions})
        (src / "annotations" / f"captions_{split}2017.json").write_text(text)
    (src / "annotations" / "person_keypoints_val2017.json").write_text(json.dumps(document))
    report = import_dataset(src, tmp_path / "out")
    assert report.images == {"train": 1, "val": 1}
    assert report.counts["files_ignored"] == 1 and report.counts["captions_added"] == 2
    image = read_dataset(tmp_path / "out", "val").images[0]
    assert (image.id, image.file_name, image.extra["caption"]) == (9, "9.png", "caption 3")


def test_a_picture_in_two_splits_stays_in_the_held_out_one(tmp_path):
    src = make_folder(tmp_path / "src", sound_document())
    document = sound_document()
    document["images"], document["annotations"] = document["images"][:1], document["annotations"][:1]
    (src / "test.json").write_text(json.dumps(document))
    report = import_dataset(src, tmp_path / "out")
    assert report.images == {"train": 1, "test": 1} and report.counts["images_in_two_splits"] == 1


def test_jsons_whose_split_is_unknown_are_refused(tmp_path):
    src = make_folder(tmp_path / "src", sound_document(), "one")
    shutil.copy(src / "one.json", src / "two.json")
    with pytest.raises(DatasetError, match="one.json .*two.json"):
        import_dataset(src, tmp_path / "out")
    assert import_dataset(src / "one.json", tmp_path / "out").images == {"train": 2}


def test_shares_draw_the_splits_that_are_missing(tmp_path):
    report, counts, _ = _import(tmp_path, sound_document(), test=0.5)
    assert report.images == {"train": 1, "test": 1} and counts == {"splits_drawn": 2}


# the frame of EXIF-turned pictures


@pytest.mark.parametrize("frame", ["stored", "upright"])
def test_boxes_of_turned_pictures_come_out_upright(tmp_path, frame):
    src = shared_data("hostile_images") / "annotations"
    report = import_dataset(src / f"exif_{frame}.json", tmp_path / "out")
    upright = json.loads((src / "exif_upright.json").read_text())
    dataset = read_dataset(tmp_path / "out", "train")
    boxes = {a.id: list(a.bbox_xywh) for a in dataset.annotations}
    assert boxes == {a["id"]: a["bbox"] for a in upright["annotations"]}
    assert {i.id: (i.width, i.height) for i in dataset.images} == {
        i["id"]: (i["width"], i["height"]) for i in upright["images"]
    }
    assert report.counts["exif_turned"] == (10 if frame == "stored" else 0)
    assert report.counts[f"exif_assumed_{frame}"] == 4
    assert validate_dataset(tmp_path / "out") == []


def test_the_frame_can_be_said(tmp_path):
    src = shared_data("hostile_images") / "annotations"
    document = json.loads((src / "exif_stored.json").read_text())
    for image in document["images"]:
        del image["width"], image["height"]
    shutil.copytree(src.parent / "images", tmp_path / "copy" / "images", ignore=lambda d, names: [
        n for n in names if not n.startswith(("Landscape", "Portrait"))
    ])  # fmt: skip
    (tmp_path / "copy" / "train.json").write_text(json.dumps(document))
    import_dataset(tmp_path / "copy", tmp_path / "out", exif="stored")
    upright = json.loads((src / "exif_upright.json").read_text())
    boxes = {a.id: list(a.bbox_xywh) for a in read_dataset(tmp_path / "out", "train").annotations}
    assert boxes == {a["id"]: a["bbox"] for a in upright["annotations"]}


# the whole command


def test_the_output_is_complete_or_absent(tmp_path):
    src = make_folder(tmp_path / "src", sound_document())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(DatasetError, match="never overwrites"):
        import_dataset(src, tmp_path / "out")
    with pytest.raises(DatasetError, match="inside the source"):
        import_dataset(src, src / "out")
    with pytest.raises(DatasetError, match="too few"):
        import_dataset(src, tmp_path / "third", val=0.4, test=0.4)
    shutil.rmtree(src / "images")
    with pytest.raises(DatasetError, match="(?s)no usable picture.*image 1"):
        import_dataset(src, tmp_path / "fourth")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "src"]


def test_the_source_is_not_touched(tmp_path):
    src = make_folder(tmp_path / "src", sound_document())
    before = {p: (p.stat().st_mtime_ns, p.stat().st_nlink, p.stat().st_mode) for p in src.rglob("*") if p.is_file()}
    import_dataset(src, tmp_path / "out")
    for path in (tmp_path / "out").rglob("*.png"):
        path.write_bytes(b"overwritten")
    assert before == {p: (p.stat().st_mtime_ns, p.stat().st_nlink, p.stat().st_mode) for p in before}


@pytest.mark.parametrize("format", ["cvat", "tfrecord", ""])
def test_an_unknown_format_names_the_known_ones(tmp_path, format):
    with pytest.raises(DatasetError, match="coco, voc, yolo"):
        import_dataset(make_folder(tmp_path / "src", sound_document()), tmp_path / "out", format)


def test_what_is_no_dataset_is_said(tmp_path):
    with pytest.raises(DatasetError, match="no source"):
        import_dataset(tmp_path / "none", tmp_path / "out")
    make_picture(tmp_path / "src" / "a.png")
    with pytest.raises(DatasetError, match="looks like no dataset"):
        import_dataset(tmp_path / "src", tmp_path / "out")
    (tmp_path / "data.zip").write_bytes(b"PK")
    with pytest.raises(DatasetError, match="Unpack"):
        import_dataset(tmp_path / "data.zip", tmp_path / "out")
    make_folder(tmp_path / "cut", json.dumps(sound_document())[:-20])
    with pytest.raises(DatasetError, match="cut off"):
        import_dataset(tmp_path / "cut", tmp_path / "out")
