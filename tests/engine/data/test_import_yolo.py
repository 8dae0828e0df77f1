"""YOLO in: layouts, lines, and that paths stay inside the source."""

import pytest
from tiny_data import make_picture

from engine.data.convert import import_dataset
from engine.data.dataset import read_dataset, splits_of
from engine.errors import DatasetError

LINE = "1 0.5 0.5 0.25 0.4\n"  # in 40 x 30: 10 x 12 around (20, 15)
BBOX = pytest.approx((15, 9, 10, 12))


def _put(src, name: str, lines: str | None = LINE, labels: str | None = None, seed: int = 0):
    make_picture(src / name, seed=seed)
    if lines is not None:
        path = src / (labels or name.replace("images", "labels").replace(".png", ".txt"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(lines)


def _classes(src, text="names: [cell, blob]\n", name="data.yaml"):
    src.mkdir(parents=True, exist_ok=True)
    (src / name).write_text(text)


def _layout_images_first(src):
    _put(src, "images/train/a.png")
    _put(src, "images/val/b.png", seed=1)
    _classes(src, "path: .\ntrain: images/train\nval: images/val\nnames: {0: cell, 1: blob}\n")
    return {"train": ["train/a.png"], "val": ["val/b.png"]}


def _layout_split_first_with_false_dots(src):
    _put(src, "train/images/a.png")
    _put(src, "valid/images/b.png", seed=1)
    _classes(src, "train: ../train/images\nval: ../valid/images\nnames: [cell, blob]\n")
    return {"train": ["train/a.png"], "val": ["valid/b.png"]}


def _layout_absolute_path_of_another_machine(src):
    _put(src, "images/train/a.png")
    _classes(src, "path: /home/someone/data\ntrain: images/train\nval:\nnames: [cell, blob]\n")
    return {"train": ["train/a.png"]}


def _layout_lists(src):
    _put(src, "images/a.png")
    _put(src, "images/b.png", seed=1)
    _classes(src, "train: train.txt\ntest: test.txt\nnames: [cell, blob]\n")
    (src / "train.txt").write_text("./images/a.png\n")
    (src / "test.txt").write_text("images/b.png\n\n")
    return {"train": ["a.png"], "test": ["b.png"]}


def _layout_no_yaml(src):
    _put(src, "images/a.png")
    _put(src, "images/b.png", seed=1)
    _classes(src, "cell\nblob\n\n", "classes.txt")
    return {"train": ["a.png", "b.png"]}


def _layout_beside(src):
    _put(src, "a.png", labels="a.txt")
    _classes(src, "cell\nblob\n", "obj.names")
    return {"train": ["a.png"]}


LAYOUTS = [
    _layout_images_first,
    _layout_split_first_with_false_dots,
    _layout_absolute_path_of_another_machine,
    _layout_lists,
    _layout_no_yaml,
    _layout_beside,
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
def test_layouts(tmp_path, layout):
    expected = layout(tmp_path / "src")
    report = import_dataset(tmp_path / "src", tmp_path / "out")
    assert report.format == "yolo" and not any(report.counts.values())
    datasets = {split: read_dataset(tmp_path / "out", split) for split in splits_of(tmp_path / "out")}
    assert {split: [i.file_name for i in d.images] for split, d in datasets.items()} == expected
    for dataset in datasets.values():
        assert {c.id: c.name for c in dataset.categories} == {1: "cell", 2: "blob"}
        for image in dataset.images:
            (annotation,) = dataset.annotations_of(image.id)
            assert annotation.bbox_xywh == BBOX and annotation.category_id == 2
            assert annotation.area == pytest.approx(120) and annotation.iscrowd == 0


@pytest.mark.parametrize(
    "line, counts, bbox",
    [
        ("0 0.5 0.5 0.25 0.4 0.75", {}, (15, 9, 10, 12)),
        ("0 0.1 0.2 0.5 0.2 0.5 0.6 0.1 0.6", {}, (4, 6, 16, 12)),
        ("0 0.1 0.2 0.5 0.2 0.3 0.6", {}, (4, 6, 16, 12)),
        ("0 0.5 0.5 1.0 1.000001", {"boxes_trimmed": 1}, (0, 0, 40, 30)),
        ("0 1.0 0.5 0.5 0.4", {"boxes_clipped": 1}, (30, 9, 10, 12)),
        ("0 2.0 0.5 0.5 0.4", {"boxes_outside": 1}, None),
        ("0 0.5 0.5 0 0.4", {"boxes_zero_area": 1}, None),
        ("0 0.5 0.5 nan 0.4", {"boxes_malformed": 1}, None),
        ("0 0.5 0.5", {"boxes_malformed": 1}, None),
        ("cell 0.5 0.5 0.1 0.1", {"boxes_malformed": 1}, None),
        ("2 0.5 0.5 0.1 0.1", {"boxes_unknown_category": 1}, None),
        ("-1 0.5 0.5 0.1 0.1", {"boxes_unknown_category": 1}, None),
        ("0.5 0.5 0.5 0.1 0.1", {"boxes_unknown_category": 1}, None),
        ("0 0.5 0.5 0.1 0.1 7", {"boxes_bad_score": 1}, None),
    ],
)
def test_lines(tmp_path, line, counts, bbox):
    _put(tmp_path / "src", "images/a.png", LINE + line + "\n")
    _classes(tmp_path / "src")
    report = import_dataset(tmp_path / "src", tmp_path / "out")
    assert {kind: n for kind, n in report.counts.items() if n} == counts
    boxes = [a for a in read_dataset(tmp_path / "out", "train").annotations if a.category_id == 1]
    assert [a.bbox_xywh for a in boxes] == ([] if bbox is None else [pytest.approx(bbox)])
    if line.endswith("0.75"):
        assert boxes[0].extra == {"score": 0.75}


def test_a_picture_without_label_file_has_no_objects(tmp_path):
    _put(tmp_path / "src", "images/a.png", None)
    _put(tmp_path / "src", "images/b.png", "", seed=1)
    _classes(tmp_path / "src")
    report = import_dataset(tmp_path / "src", tmp_path / "out")
    assert report.images == {"train": 2} and report.boxes == {"train": 0}
    assert report.counts["images_without_labels"] == 1


def test_turned_pictures_are_upright(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    make_picture(tmp_path / "src" / "images" / "a.jpg", exif=exif)
    (tmp_path / "src" / "labels").mkdir()
    (tmp_path / "src" / "labels" / "a.txt").write_text(LINE)
    _classes(tmp_path / "src")
    report = import_dataset(tmp_path / "src", tmp_path / "out")
    dataset = read_dataset(tmp_path / "out", "train")
    assert (dataset.images[0].width, dataset.images[0].height) == (30, 40)
    assert dataset.annotations[0].bbox_xywh == pytest.approx((11.25, 12, 7.5, 16))
    assert not any(report.counts.values())


@pytest.mark.parametrize("place", ["../outside", "OUTSIDE", "link"])
def test_paths_stay_inside_the_source(tmp_path, place):
    make_picture(tmp_path / "outside" / "secret.png", seed=5)
    _put(tmp_path / "src", "images/a.png")
    (tmp_path / "src" / "link").symlink_to(tmp_path / "outside")
    place = str(tmp_path / "outside") if place == "OUTSIDE" else place
    _classes(tmp_path / "src", f"train: images\nval: {place}\nnames: [cell, blob]\n")
    report = import_dataset(tmp_path / "src", tmp_path / "out")
    assert report.images == {"train": 1}
    assert not list((tmp_path / "out").rglob("secret*"))


def test_a_linked_picture_or_label_that_leaves_is_refused(tmp_path):
    make_picture(tmp_path / "secret.png", seed=5)
    (tmp_path / "secret.txt").write_text(LINE)
    src = tmp_path / "src"
    _put(src, "images/a.png")
    _put(src, "images/b.png", None, seed=1)
    (src / "images" / "c.png").symlink_to(tmp_path / "secret.png")
    (src / "labels" / "b.txt").symlink_to(tmp_path / "secret.txt")
    _classes(src)
    report = import_dataset(src, tmp_path / "out")
    assert report.images == {"train": 1} and report.boxes == {"train": 1}
    assert sorted(n.where for n in report.refusals) == ["images/b.png", "images/c.png"]
    assert all("link that leaves" in n.detail for n in report.refusals)


@pytest.mark.parametrize("text", ["names: 5", "names: {a: b}", "names: []", "train: images", ": : :", "[1, 2]"])
def test_a_yaml_without_classes_is_an_error(tmp_path, text):
    _put(tmp_path / "src", "images/a.png")
    _classes(tmp_path / "src", text)
    with pytest.raises(DatasetError, match="names|classes"):
        import_dataset(tmp_path / "src", tmp_path / "out", "yolo")
    with pytest.raises(DatasetError, match="names"):
        import_dataset(tmp_path / "src" / "data.yaml", tmp_path / "out")


def test_a_round_trip_through_yolo_keeps_the_boxes(tmp_path):
    """A written dataset in YOLO's fractions comes back to the same boxes."""
    import random

    rng, src, lines, boxes = random.Random(3), tmp_path / "src", [], []
    for _ in range(50):
        x, y = rng.uniform(0, 30), rng.uniform(0, 20)
        w, h = rng.uniform(1, 40 - x), rng.uniform(1, 30 - y)
        boxes.append((x, y, w, h))
        lines.append(f"0 {(x + w / 2) / 40:.8f} {(y + h / 2) / 30:.8f} {w / 40:.8f} {h / 30:.8f}")
    _put(src, "images/a.png", "\n".join(lines))
    _classes(src)
    import_dataset(src, tmp_path / "out")
    found = [a.bbox_xywh for a in read_dataset(tmp_path / "out", "train").annotations]
    assert found == [pytest.approx(box, abs=1e-6) for box in boxes]
