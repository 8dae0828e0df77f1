"""Reading is strict: hostile cases 17 to 19 and 21, one clear error each, and nothing outside the folder is opened."""

import builtins
import io
import json
import os

import pytest
from tiny_data import make_folder, make_picture, measure, sound_document

from engine.data.dataset import read_dataset, splits_of
from engine.errors import DatasetError


def test_a_sound_folder_is_read_as_it_is(tmp_path):
    dataset = read_dataset(make_folder(tmp_path, sound_document()), "train")
    assert [image.id for image in dataset.images] == [1, 7]
    assert dataset.images[0].extra == {"caption": "two cells"}
    assert [a.id for a in dataset.annotations_of(1)] == [3, 1]
    assert dataset.annotations_of(7)[0].extra == {"score": 0.5}
    assert dataset.annotations_of(7)[0].bbox_xywh == (0.0, 0.0, 5.0, 5.0)
    assert dataset.annotations_of(99) == ()
    assert {c.id: c.name for c in dataset.categories} == {2: "RBC", 90: "WBC"}
    assert dataset.load(dataset.images[1]).size == (40, 30)
    assert splits_of(tmp_path) == ["train"]


def _set(table, position, **values):
    def change(document):
        document[table][position].update(values)

    return change


def _drop(table, position, key):
    def change(document):
        del document[table][position][key]

    return change


def _twice(table, position=0, **values):
    def change(document):
        document[table].append({**document[table][position], **values})

    return change


BREACHES = {
    # 17: names
    "name ..": (_set("images", 0, file_name="../../etc/passwd"), ["image 1", "leaves the dataset folder"]),
    "name .. inside": (_set("images", 0, file_name="sub/../../x.png"), ["image 1", "leaves"]),
    "name absolute": (_set("images", 0, file_name="/etc/passwd"), ["image 1", "absolute"]),
    "name NUL": (_set("images", 0, file_name="a\x00.png"), ["image 1", "NUL"]),
    "name newline": (_set("images", 0, file_name="a\n.png"), ["image 1", "control character"]),
    "name backslash": (_set("images", 0, file_name="sub\\b.png"), ["image 1", "backslash"]),
    "name drive": (_set("images", 0, file_name="C:/a.png"), ["image 1", "absolute"]),
    "name dot": (_set("images", 0, file_name="./a.png"), ["image 1", "'.'"]),
    "name surrogate": (_set("images", 0, file_name="\ud800.png"), ["image 1", "not valid text"]),
    "name long": (_set("images", 0, file_name="a" * 5000), ["image 1", "5000 characters"]),
    "name number": (_set("images", 0, file_name=5), ["image 1", "not a name"]),
    "name twice": (_twice("images", id=8), ["image 8", "same file_name"]),
    "no such file": (_set("images", 0, file_name="c.png"), ["image 1 (c.png)", "no such file"]),
    "a folder": (_set("images", 0, file_name="sub"), ["image 1", "not a plain file"]),
    # 18: ids
    "annotation id 0": (_set("annotations", 0, id=0), ["annotation number 1", "ids start at 1"]),
    "annotation id twice": (_set("annotations", 0, id=2), ["annotation 2", "same id"]),
    "annotation id text": (_set("annotations", 0, id="3"), ["annotation number 1", "'3'", "no integer"]),
    "annotation id bool": (_set("annotations", 0, id=True), ["annotation number 1", "True"]),
    "annotation id fraction": (_set("annotations", 0, id=3.0), ["annotation number 1", "3.0"]),
    "annotation id 2^53": (_set("annotations", 0, id=2**53), ["annotation number 1", "below 2^53"]),
    "annotation id missing": (_drop("annotations", 0, "id"), ["annotation number 1", "id is missing"]),
    "orphan": (_set("annotations", 0, image_id=5), ["annotation 3", "image_id 5"]),
    "image_id text": (_set("annotations", 0, image_id="1"), ["annotation 3", "image_id is '1'"]),
    "image_id missing": (_drop("annotations", 0, "image_id"), ["annotation 3", "image_id is None"]),
    "unknown category": (_set("annotations", 0, category_id=1), ["annotation 3", "category_id 1"]),
    "category_id text": (_set("annotations", 0, category_id="2"), ["annotation 3", "category_id is '2'"]),
    "image id 0": (_set("images", 1, id=0), ["image number 2", "ids start at 1"]),
    "image id twice": (_set("images", 1, id=1), ["image 1", "same id"]),
    "image id text": (_set("images", 1, id="7"), ["image number 2", "'7'"]),
    "category id 0": (_set("categories", 0, id=0), ["category number 1", "ids start at 1"]),
    "category twice": (_set("categories", 1, id=2), ["category 2", "same id"]),
    "category name twice": (_set("categories", 1, name="RBC"), ["category 90", "'RBC'"]),
    "category no name": (_set("categories", 1, name=""), ["category 90", "name"]),
    # 19: boxes and numbers
    "bbox negative": (_set("annotations", 0, bbox=[1, 2, -3, 4]), ["annotation 3", "no area"]),
    "bbox empty": (_set("annotations", 0, bbox=[1, 2, 0, 4]), ["annotation 3", "no area"]),
    "bbox outside": (_set("annotations", 0, bbox=[35, 2, 10, 4]), ["annotation 3", "40 x 30"]),
    "bbox left of it": (_set("annotations", 0, bbox=[-1, 2, 10, 4]), ["annotation 3", "sticks out"]),
    "bbox of three": (_set("annotations", 0, bbox=[1, 2, 3]), ["annotation 3", "four numbers"]),
    "bbox missing": (_drop("annotations", 0, "bbox"), ["annotation 3", "four numbers"]),
    "bbox text": (_set("annotations", 0, bbox=["1", 2, 3, 4]), ["annotation 3", "no finite number"]),
    "bbox bool": (_set("annotations", 0, bbox=[True, 2, 3, 4]), ["annotation 3", "no finite number"]),
    "bbox huge": (_set("annotations", 0, bbox=[10**400, 2, 3, 4]), ["annotation 3", "no finite number"]),
    "score above 1": (_set("annotations", 0, score=1.5), ["annotation 3", "score is 1.5"]),
    "score text": (_set("annotations", 0, score="high"), ["annotation 3", "score"]),
    "iscrowd missing": (_drop("annotations", 0, "iscrowd"), ["annotation 3", "iscrowd is missing"]),
    "iscrowd 2": (_set("annotations", 0, iscrowd=2), ["annotation 3", "iscrowd is 2"]),
    "iscrowd bool": (_set("annotations", 0, iscrowd=False), ["annotation 3", "iscrowd is False"]),
    "area missing": (_drop("annotations", 0, "area"), ["annotation 3", "area is missing"]),
    "area 0": (_set("annotations", 0, area=0), ["annotation 3", "area is 0"]),
    "width missing": (_drop("images", 0, "width"), ["image 1 (a.png)", "width"]),
    "width 0": (_set("images", 0, width=0), ["image 1 (a.png)", "width"]),
    "entry no object": (lambda d: d["images"].append(5), ["image number 3", "no object"]),
    "no categories": (lambda d: d.pop("categories"), ["'categories' is missing"]),
    "images no list": (lambda d: d.update(images={}), ["'images' is not a list"]),
}


@pytest.mark.parametrize("case", BREACHES)
def test_a_breach_of_the_contract_is_one_clear_error(tmp_path, case):
    change, words = BREACHES[case]
    document = sound_document()
    change(document)
    with pytest.raises(DatasetError) as caught:
        read_dataset(make_folder(tmp_path, document), "train")
    message = str(caught.value)
    assert all(word in message for word in [*words, "train.json", "de import"]), message
    assert f"{len(message.splitlines()) - 2} problem" in message  # each is one line, and each is counted
    assert len(message) < 3000


def test_one_wrong_record_is_blamed_once(tmp_path):
    document = sound_document()
    document["images"][0]["width"] = 0  # its annotations are not orphans
    with pytest.raises(DatasetError, match="1 problem:"):
        read_dataset(make_folder(tmp_path, document), "train")


def test_the_first_ten_offenders_are_listed(tmp_path):
    document = sound_document()
    document["annotations"] = [{**document["annotations"][0], "id": n, "bbox": [0, 0, 0, 0]} for n in range(1, 31)]
    with pytest.raises(DatasetError) as caught:
        read_dataset(make_folder(tmp_path, document), "train")
    message = str(caught.value)
    assert "30 problems, the first 10" in message
    assert [n for n in range(1, 31) if f"annotation {n}:" in message] == list(range(1, 11))


def test_half_a_pixel_of_rounding_is_no_breach(tmp_path):
    document = sound_document()
    document["annotations"][0]["bbox"] = [-0.5, 0, 41, 30.5]
    read_dataset(make_folder(tmp_path, document), "train")
    document["annotations"][0]["bbox"] = [-0.51, 0, 41, 30.5]
    with pytest.raises(DatasetError, match="sticks out"):
        read_dataset(make_folder(tmp_path, document), "train")


@pytest.mark.parametrize("link", ["a.png", "sub", "."])
def test_links_out_of_the_folder_are_refused(tmp_path, link):
    folder = make_folder(tmp_path / "data", sound_document())
    outside = tmp_path / "outside"
    os.rename(folder / "images", outside)
    if link == ".":
        (folder / "images").symlink_to(outside)
    else:
        (folder / "images").mkdir()
        for name in ("a.png", "sub"):
            source = outside / name
            target = folder / "images" / name
            target.symlink_to(source) if name == link else os.rename(source, target)
    with pytest.raises(DatasetError, match=r"image [17] .*link that leaves"):
        read_dataset(folder, "train")


def test_a_link_inside_the_folder_is_fine(tmp_path):
    folder = make_folder(tmp_path, sound_document())
    os.rename(folder / "images" / "a.png", folder / "store.png")
    (folder / "images" / "a.png").symlink_to(folder / "store.png")
    dataset = read_dataset(folder, "train")
    assert dataset.load(dataset.images[0]).size == (40, 30)


def test_a_json_that_is_a_link_out_is_refused(tmp_path):
    folder = make_folder(tmp_path / "data", sound_document())
    os.rename(folder / "train.json", tmp_path / "train.json")
    (folder / "train.json").symlink_to(tmp_path / "train.json")
    with pytest.raises(DatasetError, match="link that leaves"):
        read_dataset(folder, "train")


def test_a_link_that_appears_after_reading_is_not_followed(tmp_path):
    folder = make_folder(tmp_path / "data", sound_document())
    dataset = read_dataset(folder, "train")
    os.rename(folder / "images" / "a.png", tmp_path / "elsewhere.png")
    (folder / "images" / "a.png").symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(DatasetError, match="image 1 .*link that leaves"):
        dataset.load(dataset.images[0])


@pytest.mark.parametrize("name", ["../secret.png", "SECRET", "link.png"])
def test_nothing_outside_is_opened(tmp_path, monkeypatch, name):
    secret = make_picture(tmp_path / "secret.png")
    document = sound_document()
    document["images"][0]["file_name"] = str(secret) if name == "SECRET" else name
    folder = make_folder(tmp_path / "data", document)
    (folder / "images" / "link.png").symlink_to(secret)
    opened = []

    def spy(function):
        return lambda path, *args, **kwargs: (opened.append(str(path)), function(path, *args, **kwargs))[1]

    for module in (builtins, io):
        monkeypatch.setattr(module, "open", spy(open))
    monkeypatch.setattr(os, "open", spy(os.open))
    with pytest.raises(DatasetError):
        read_dataset(folder, "train")
    assert any("train.json" in path for path in opened)  # the spy works
    assert not any("secret" in path or "link" in path for path in opened)


@pytest.mark.parametrize("split", ["../train", "/etc/passwd", "", "a/b", "train\x00", None])
def test_a_split_is_a_plain_name(tmp_path, split):
    with pytest.raises(DatasetError, match="no name of a split"):
        read_dataset(make_folder(tmp_path, sound_document()), split)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(DatasetError, match="no dataset folder .*nowhere"):
        read_dataset(tmp_path / "nowhere", "train")
    with pytest.raises(DatasetError, match="no split 'val'.*train"):
        read_dataset(make_folder(tmp_path, sound_document()), "val")


# 21: the json itself

TEXTS = {
    "empty": ("", "not complete, valid json"),
    "cut off": (json.dumps(sound_document())[:300], "cut off"),
    "no json": ("images: []", "not complete, valid json"),
    "NaN": ('{"images": NaN}', "NaN"),
    "Infinity": ('{"images": [-Infinity]}', "Infinity"),
    "1e999": ('{"images": [1e999]}', "too large"),
    "duplicate key": ('{"images": [], "annotations": [], "categories": [], "images": [1]}', "'images' twice"),
    "duplicate key deep": ('{"images": [{"id": 1, "id": 2}], "annotations": []}', "'id' twice"),
    "a list": ("[]", "no json object"),
    "a number": ("5", "no json object"),
    "33 deep": ('{"images": ' + "[" * 40 + "]" * 40 + "}", "more than 32 deep"),
    "objects deep": ('{"a":' * 200 + "1" + "}" * 200, "more than 32 deep"),
    "integer of 10,000 digits": ('{"images": ' + "9" * 10_000 + "}", "refused"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_hostile_json_is_refused(tmp_path, case):
    text, words = TEXTS[case]
    with pytest.raises(DatasetError) as caught:
        read_dataset(make_folder(tmp_path, text), "train")
    assert words in str(caught.value)
    assert "train.json" in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    folder = make_folder(tmp_path, "")
    (folder / "train.json").write_bytes(b"\xff\xd8\xff\xe0 jpeg")
    with pytest.raises(DatasetError, match="UTF-8"):
        read_dataset(folder, "train")


def test_the_size_limit_is_adjustable(tmp_path):
    folder = make_folder(tmp_path, sound_document())
    size = (folder / "train.json").stat().st_size
    read_dataset(folder, "train", max_json_bytes=size)
    with pytest.raises(DatasetError, match=f"{size} bytes; at most {size - 1}"):
        read_dataset(folder, "train", max_json_bytes=size - 1)


READ = """
from time import process_time
from engine.data.dataset import read_dataset
from engine.errors import DatasetError
start()
began = process_time()
try:
    read_dataset(sys.argv[1], "train")
except DatasetError as error:
    finish(message=str(error), seconds=process_time() - began)
"""


def test_huge_and_deep_json_cost_little(tmp_path):
    folder = make_folder(tmp_path / "huge", "")
    with open(folder / "train.json", "wb") as file:
        file.truncate(2**30)  # 1 GB, sparse
    huge = measure(READ, folder)
    assert f"{2**30} bytes" in huge["message"]
    folder = make_folder(tmp_path / "deep", '{"images": ' + "[" * 10**5 + "]" * 10**5 + "}")
    deep = measure(READ, folder)
    assert "deep in each other" in deep["message"]
    for answer in (huge, deep):
        assert answer["grown"] < 50 * 2**20
        assert answer["seconds"] < 5
