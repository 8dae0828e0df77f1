"""Pascal VOC in; the blood-cell set's own xml gives the boxes of the json beside it."""

import json

import pytest
from tiny_data import make_picture, shared_data

from engine.data.convert import import_dataset
from engine.data.dataset import read_dataset
from engine.data.validate import validate_dataset
from engine.errors import DatasetError


@pytest.fixture(scope="module")
def bccd(tmp_path_factory):
    out = tmp_path_factory.mktemp("bccd") / "out"
    return import_dataset(shared_data("bccd") / "voc", out), out


def _boxes(images, annotations, categories) -> set:
    names, classes = {i["id"]: i["file_name"] for i in images}, {c["id"]: c["name"] for c in categories}
    return {(names[a["image_id"]], classes[a["category_id"]], tuple(a["bbox"]), n) for n, a in _numbered(annotations)}


def _numbered(annotations):
    """Each annotation with how many equal ones came before it, so that a set keeps repeated boxes."""
    seen: dict = {}
    for a in annotations:
        key = (a["image_id"], a["category_id"], tuple(a["bbox"]))
        seen[key] = seen.get(key, -1) + 1
        yield seen[key], a


@pytest.mark.parametrize("split, empty", [("train", 1), ("val", 1), ("test", 0)])
def test_the_blood_cells_own_xml_gives_the_boxes_of_the_json(bccd, split, empty):
    _, out = bccd
    truth = json.loads((shared_data("bccd") / "annotations" / f"{split}.json").read_text())
    ours = json.loads((out / f"{split}.json").read_text())
    expected = _boxes(truth["images"], truth["annotations"], truth["categories"])
    found = _boxes(ours["images"], ours["annotations"], ours["categories"])
    assert found <= expected
    assert sorted(box[2:] for _, _, box, _ in expected - found) == [(0, 0)] * empty
    assert {c["id"]: c["name"] for c in ours["categories"]} == {c["id"]: c["name"] for c in truth["categories"]}
    assert {i["id"]: (i["file_name"], i["width"], i["height"]) for i in ours["images"]} == {
        i["id"]: (i["file_name"], i["width"], i["height"]) for i in truth["images"]
    }
    assert all(a["area"] == a["bbox"][2] * a["bbox"][3] and a["iscrowd"] == 0 for a in ours["annotations"])
    assert {a["truncated"] for a in ours["annotations"]} == {0, 1}


def test_the_two_boxes_without_area_are_reported_and_nothing_else(bccd):
    report, _ = bccd
    assert {kind: n for kind, n in report.counts.items() if n} == {"boxes_zero_area": 2}
    assert {note.where for note in report.refusals} == {
        "Annotations/BloodImage_00338.xml object 13", "Annotations/BloodImage_00343.xml object 4",
    }  # fmt: skip
    assert report.images == {"train": 205, "val": 87, "test": 72}
    assert report.boxes == {"train": 2804, "val": 1137, "test": 945}
    assert "BloodImage_00338" in report.text()


def test_validation_finds_the_known_double_labels_and_nothing_else(bccd):
    findings = validate_dataset(bccd[1])
    assert {f.severity for f in findings} == {"warning"}
    pictures = sorted(f.where.split("BloodImage_")[1][:5] for f in findings)
    assert pictures == ["00013", "00020", "00100", "00104", "00251", "00284", "00331", "00403"]
    assert all("overlap by IoU" in f.what and "RBC" in f.what for f in findings)


def test_pictures_in_a_neighbouring_folder_and_splits_by_folder(tmp_path):
    report = import_dataset(shared_data("microcontroller") / "orig", tmp_path / "out")
    assert (report.format, report.images) == ("voc", {"train": 142, "test": 7})
    assert sum(report.boxes.values()) == 177 and not any(report.counts.values())


def _xml(objects: str = "", filename: str = "a.png", size: str = "40 30", head: str = "") -> str:
    width, height = size.split()
    return (
        f"{head}<annotation><filename>{filename}</filename><path>/etc/passwd</path><size><width>{width}</width>"
        f"<height>{height}</height><depth>3</depth></size>{objects}</annotation>"
    )


def _object(corners: str, name: str = "cell", rest: str = "") -> str:
    keys = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{k}>{v}</{k}>" for k, v in zip(keys, corners.split(), strict=True))
    return f"<object><name>{name}</name>{rest}<bndbox>{box}</bndbox></object>"


def _folder(tmp_path, xml: str, name: str = "a"):
    make_picture(tmp_path / "src" / "JPEGImages" / "a.png")
    (tmp_path / "src" / "Annotations").mkdir(exist_ok=True)
    (tmp_path / "src" / "Annotations" / f"{name}.xml").write_text(xml)
    return tmp_path / "src"


@pytest.mark.parametrize(
    "corners, counts, boxes",
    [
        ("1 2 11 22", {}, [(1, 2, 10, 20)]),
        ("1.5 2.0 11.5 22", {}, [(1.5, 2, 10, 20)]),
        ("5 5 5 9", {"boxes_zero_area": 1}, []),
        ("9 5 5 9", {"boxes_zero_area": 1}, []),
        ("30 20 45 45", {"boxes_clipped": 1}, [(30, 20, 10, 10)]),
        ("41 31 45 45", {"boxes_outside": 1}, []),
        ("nan 1 5 5", {"boxes_malformed": 1}, []),
        ("one 1 5 5", {"boxes_malformed": 1}, []),
    ],
)
def test_corners(tmp_path, corners, counts, boxes):
    src = _folder(tmp_path, _xml(_object(corners) + _object("0 0 40 30", "frame")))
    report = import_dataset(src, tmp_path / "out")
    assert {kind: n for kind, n in report.counts.items() if n} == counts
    dataset = read_dataset(tmp_path / "out", "train")
    assert [c.name for c in dataset.categories] == ["cell", "frame"]
    assert [a.bbox_xywh for a in dataset.annotations if a.category_id == 1] == boxes


@pytest.mark.parametrize(
    "filename", ["a.png", "a", "", "/elsewhere/a.png", "C:\\work\\a.png", "../../a.png", "other.png", "a.jpg"]
)
def test_the_picture_is_found_by_its_name_or_the_xmls(tmp_path, filename):
    report = import_dataset(_folder(tmp_path, _xml(_object("1 2 3 4"), filename)), tmp_path / "out")
    assert report.images == {"train": 1}
    assert read_dataset(tmp_path / "out", "train").images[0].file_name == "a.png"


def test_size_0_is_corrected(tmp_path):
    report = import_dataset(_folder(tmp_path, _xml(_object("1 2 30 30"), size="0 0")), tmp_path / "out")
    assert report.counts["sizes_corrected"] == 1 and report.boxes == {"train": 1}


ENTITIES = '<!DOCTYPE a [<!ENTITY x "xxxxxxxxxx"><!ENTITY y "&x;&x;&x;"><!ENTITY z SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize(
    "xml",
    [
        _xml(_object("1 2 3 4", "&y;"), head=ENTITIES),
        _xml(_object("1 2 3 4", "&z;"), head=ENTITIES),
        _xml(_object("1 2 3 4"))[:90],
        "",
        "<html></html>",
    ],
)
def test_hostile_xml_is_refused_and_the_rest_imported(tmp_path, xml):
    make_picture(tmp_path / "src" / "JPEGImages" / "b.png", seed=1)
    _folder(tmp_path, _xml(_object("1 2 3 4"), "b.png"), "b")
    report = import_dataset(_folder(tmp_path, xml), tmp_path / "out")
    assert report.images == {"train": 1} and report.counts["images_refused"] == 1
    assert report.refusals[0].where == "Annotations/a.xml"
    assert "root:" not in report.text()


def test_a_harmless_doctype_is_fine(tmp_path):
    report = import_dataset(_folder(tmp_path, _xml(_object("1 2 3 4"), head="<!DOCTYPE annotation>")), tmp_path / "out")
    assert report.images == {"train": 1}


def test_lists_decide_the_splits(tmp_path):
    lists = tmp_path / "src" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for number, name in enumerate("abcde"):
        make_picture(tmp_path / "src" / "JPEGImages" / f"{name}.png", seed=number)
        _folder(tmp_path, _xml(_object("1 2 9 9"), f"{name}.png"), name)
    (lists / "trainval.txt").write_text("a\nb\nc\n\n")
    (lists / "test.txt").write_text("c\nd\nghost\n")
    (lists / "cell_trainval.txt").write_text("a 1\nb -1\n")
    report = import_dataset(tmp_path / "src", tmp_path / "out")
    names = {s: [i.file_name for i in read_dataset(tmp_path / "out", s).images] for s in report.images}
    assert names == {"train": ["a.png", "b.png"], "test": ["c.png", "d.png"]}
    assert [(n.where, n.kind) for n in report.refusals] == [("e.xml", "images_refused"), ("ghost", "images_refused")]


def test_no_xml_at_all_is_an_error(tmp_path):
    make_picture(tmp_path / "src" / "a.png")
    with pytest.raises(DatasetError, match="no xml"):
        import_dataset(tmp_path / "src", tmp_path / "out", "voc")
