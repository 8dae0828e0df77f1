"""A large annotations.json in pieces: the same as read whole, in bounded memory, and no other layout taken for it."""

from __future__ import annotations

import json

import pytest
from tiny_data import make_folder, make_picture, measure

from engine.data.dataset import read_dataset
from engine.data.parts import dataset_parts, image_ids
from engine.errors import DatasetError


def document(images=7, boxes=(2, 0, 3, 1)):
    """Images of rising, sparse ids; annotations in the order of their images."""
    entries = [
        {"id": 3 * n, "file_name": f"{n}.png", "width": 40, "height": 30, "de": {"prompt": "] a \"box\" }],"}}
        for n in range(1, images + 1)
    ]  # fmt: skip
    owners = [entry["id"] for n, entry in enumerate(entries) for _ in range(boxes[n % len(boxes)])]
    annotations = [
        {"id": k, "image_id": i, "category_id": 2, "bbox": [1, 2.5, 3, 4], "area": 12, "iscrowd": 0, "score": 0.5}
        for k, i in enumerate(owners, start=1)
    ]
    return {"images": entries, "annotations": annotations, "categories": [{"id": 2, "name": "a", "supercategory": ""}]}


def as_merged(content) -> str:
    """One record a line, as the merge of a run writes it."""
    images, annotations = (",".join("\n" + json.dumps(e) for e in content[k]) for k in ("images", "annotations"))
    return (
        f'{{"images":[{images}],\n"annotations":[{annotations}],\n"categories":{json.dumps(content["categories"])}}}\n'
    )


def as_written(content) -> str:
    """As write_dataset lays it out: keys sorted, the brackets on lines of their own."""
    lists = {key: ",\n".join(map(json.dumps, content[key])) for key in sorted(content)}
    return "{" + ",\n".join(f'"{k}": [\n{v}\n]' if v else f'"{k}": []' for k, v in lists.items()) + "}\n"


@pytest.fixture
def folder(tmp_path):
    for n in range(1, 8):
        make_picture(tmp_path / "images" / f"{n}.png", seed=n)
    return tmp_path


@pytest.mark.parametrize("layout", [as_merged, as_written])
@pytest.mark.parametrize(("images", "boxes"), [(7, (2, 0, 3, 1)), (7, (0,)), (1, (1,)), (0, (0,)), (4, (0, 0, 0, 2))])
def test_pieces_make_the_whole(folder, layout, images, boxes):
    (folder / "annotations.json").write_text(layout(document(images, boxes)))
    whole = read_dataset(folder, "annotations")
    for size in (1, 3, 100):
        for limit in (0, 1 << 30):  # in pieces, whole
            parts = list(dataset_parts(folder, "annotations", size, limit))
            assert sum((part.images for part in parts), ()) == whole.images
            assert sum((part.annotations for part in parts), ()) == whole.annotations
            assert {part.categories for part in parts} == {whole.categories}
            assert all(len(part.images) <= size for part in parts)
            assert image_ids(folder, "annotations", limit) == {image.id for image in whole.images}


def spoilt(change):
    content = document()
    change(content)
    return as_merged(content)


SPOILT = {
    "images out of order": (lambda c: c["images"].reverse(), "comes after"),
    "an image id twice": (lambda c: c["images"][1].update(id=3), "comes after"),
    "annotations out of order": (lambda c: c["annotations"].reverse(), "comes after"),
    "an annotation id twice": (lambda c: c["annotations"][1].update(id=1), "comes after"),
    "an orphan": (lambda c: c["annotations"][-1].update(image_id=99), "does not come with its image"),
    "a bad box": (lambda c: c["annotations"][0].update(bbox=[1, 2, -3, 4]), "bbox"),
    "an unknown class": (lambda c: c["annotations"][0].update(category_id=9), "category"),
    "a name that leaves": (lambda c: c["images"][2].update(file_name="../x.png"), "leaves"),
    "a missing picture": (lambda c: c["images"][2].update(file_name="gone.png"), "no such file"),
    "NaN": (lambda c: c["annotations"][0].update(score=float("nan")), "NaN"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_is_wrong_is_refused_in_pieces_too(folder, name):
    change, word = SPOILT[name]
    (folder / "annotations.json").write_text(spoilt(change))
    with pytest.raises(DatasetError, match=word):
        list(dataset_parts(folder, "annotations", 2, 0))


@pytest.mark.parametrize(
    "text", ["", "{}", "[1,2]", json.dumps(document()), as_merged(document())[:900], '{"images":[\n7']
)
def test_other_layouts_are_refused_where_they_are_large(folder, text):
    (folder / "annotations.json").write_text(text)
    with pytest.raises(DatasetError, match="annotations.json"):
        list(dataset_parts(folder, "annotations", 2, 0))


def test_real_splits_are_read_whole_in_any_order(tmp_path):
    content = document(2, (1, 1))
    content["images"] = [dict(content["images"][0], file_name=n, id=i) for n, i in (("sub/b.png", 9), ("a.png", 3))]
    content["annotations"][0]["image_id"], content["annotations"][1]["image_id"] = 9, 3
    parts = list(dataset_parts(make_folder(tmp_path, content), "train", 1, 0))
    assert [part.images[0].id for part in parts] == [3, 9]
    assert [part.annotations[0].id for part in parts] == [2, 1]


def test_memory_does_not_grow_with_the_dataset(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom engine.data.parts import dataset_parts\n"
        "start()\nboxes = 0\n"
        "for part in dataset_parts(Path(sys.argv[1]), 'annotations', 1000, 0):\n    boxes += len(part.annotations)\n"
        "finish(boxes=boxes)\n"
    )
    grown = []
    picture = make_picture(tmp_path / "picture.png")
    for count in (2_000, 20_000):
        folder = tmp_path / str(count)
        (folder / "images").mkdir(parents=True)
        content = document(count, (3, 4))
        for entry in content["images"]:
            (folder / "images" / entry["file_name"]).hardlink_to(picture)
        (folder / "annotations.json").write_text(as_merged(content))
        answer = measure(code, folder)
        assert answer["boxes"] == len(content["annotations"])
        grown.append(answer["grown"])
    assert grown[1] < grown[0] + 8 * 2**20  # ten times the dataset, the same memory
