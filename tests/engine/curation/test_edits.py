"""Edited boxes: what differs is found, written, read, refused where it cannot be, and becomes the training labels."""

from __future__ import annotations

import dataclasses
import json

import pytest

from engine.curation.box_diff import ShownBox, ShownBoxes, diff_boxes, sign
from engine.curation.decisions import Decisions, write_decisions
from engine.curation.edits import EditedBox, ImageEdits, read_edits, write_edits
from engine.curation.training_labels import training_labels, with_edits
from engine.data.dataset import read_dataset, to_coco, write_dataset
from engine.data.export import export_dataset
from engine.data.world import render_scene
from engine.errors import DatasetError
from engine.evaluation.compare import read_generated
from engine.generation.contents import generated_content


@pytest.fixture
def generated(folders):
    """Image 1 with the annotations 1 (house) and 2 (car), image 2 with 3 (house); pictures of 64 x 64 pixels."""
    return folders.generate([render_scene(seed).image for seed in (100, 101)], [1, 2], [[0.9, 0.7], [0.8]])


def shown_of(dataset, image_id: int) -> list[ShownBox]:
    image = next(image for image in dataset.images if image.id == image_id)
    names = {category.id: category.name for category in dataset.categories}
    boxes = []
    for a in dataset.annotations_of(image_id):
        x, y, w, h = a.bbox_xywh
        relative = (x / image.width, y / image.height, w / image.width, h / image.height)
        boxes.append(ShownBox(f"key{a.id}", names[a.category_id], relative, bool(a.iscrowd), a.id))
    return boxes


def diff(dataset, **now) -> dict[int, ImageEdits]:
    """The diff where the images given as i1=..., i2=... show these boxes and the others are untouched."""
    states = []
    for image in dataset.images:
        raw = tuple(shown_of(dataset, image.id))
        states.append(ShownBoxes(image.id, raw, tuple(now.get(f"i{image.id}", raw))))
    return diff_boxes(dataset, states)


def moved(box: ShownBox, *relative: float) -> ShownBox:
    return dataclasses.replace(box, bbox_relative=relative)


def test_untouched_boxes_are_no_edits_and_rounding_is_none(generated):
    assert diff(generated) == {}
    first, second = shown_of(generated, 1)
    nudged = moved(first, *(value + 1e-9 for value in first.bbox_relative))
    assert diff(generated, i1=[second, nudged]) == {}, "nor is another order"


def test_added_removed_and_changed_boxes_are_told_apart_by_their_id(generated):
    first, second = shown_of(generated, 1)
    drawn = ShownBox("new", "boat", (0.5, 0.5, 0.25, 0.125))
    relabelled = dataclasses.replace(first, category="boat")
    found = diff(
        generated, i1=[relabelled, drawn], i2=[ShownBox("other", "house", (0, 0, 1, 1)), *shown_of(generated, 2)]
    )
    assert found == {
        1: ImageEdits(1, (EditedBox(4, "boat", (32, 32, 16, 8)),), (2,), (EditedBox(1, "boat", (4, 8, 16, 20)),)),
        2: ImageEdits(2, (EditedBox(5, "house", (0, 0, 64, 64)),)),
    }
    ignored = dataclasses.replace(second, iscrowd=True)
    assert diff(generated, i1=[first, ignored])[1].changed == (EditedBox(2, "car", (5, 8, 16, 20), 1),)


def test_what_rounding_lets_stick_out_is_cut_off(generated):
    box = moved(shown_of(generated, 2)[0], -0.001, 0.5, 0.5, 0.501)
    assert diff(generated, i2=[box])[2].changed[0].bbox_xywh == (0.0, 32.0, 31.936, 32.0)


@pytest.mark.parametrize(
    ("box", "words"),
    [
        (ShownBox("n", "boat", (0.5, 0.5, 0.6, 0.1)), "a new box bbox .* sticks out of its picture of 64 x 64"),
        (ShownBox("n", "boat", (0.5, 0.5, 0.01, 0.1)), "a new box bbox .* has a side below 1 pixel"),
        (ShownBox("n", "boat", (0.5, 0.5, -0.1, 0.1)), "a new box bbox .* has no area"),
        (ShownBox("n", "boat", (0.5, float("nan"), 0.1, 0.1)), "a new box bbox .* no finite number"),
        (ShownBox("n", "boat", ()), "a new box bbox .* not a list of four numbers"),
        (ShownBox("n", None, (0.5, 0.5, 0.1, 0.1)), "a new box has no class; the classes are .*house"),
        (ShownBox("n", "dog", (0.5, 0.5, 0.1, 0.1)), "a new box is of the class 'dog', which there is not"),
        (ShownBox("key3", "dog", (0.5, 0.5, 0.1, 0.1)), "annotation 3 is of the class 'dog'"),
    ],
)
def test_an_edit_that_cannot_be_a_label_is_named(generated, box, words):
    with pytest.raises(DatasetError, match=rf"(?s)1 edited boxes.*\nimage 2 \(000002.png\): {words}"):
        diff(generated, i2=[box])


def test_the_file_comes_back_has_one_spelling_and_goes_with_the_last_edit(generated):
    edits = {
        2: ImageEdits(2, changed=(EditedBox(3, "car", (1.5, 2.0, 30.0, 40.0), 1),), reviewer="Ada"),
        1: ImageEdits(1, (EditedBox(4, "boat", (32, 32, 16, 8)),), (2,)),
    }
    path = write_edits(generated.folder, edits)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["image_id"] for line in lines] == [1, 2] and lines[1]["reviewer"] == "Ada"
    assert lines[0]["added"] == [{"id": 4, "category": "boat", "bbox": [32, 32, 16, 8], "iscrowd": 0}]
    assert read_edits(generated.folder) == edits
    before = path.read_bytes()
    assert write_edits(generated.folder, read_edits(generated.folder)).read_bytes() == before
    assert write_edits(generated.folder, {}) is None and not path.exists() and read_edits(generated.folder) == {}


def test_a_reviewer_stays_with_the_same_work(generated):
    mine = {1: ImageEdits(1, (EditedBox(4, "boat", (32, 32, 16, 8)),), reviewer="Ada")}
    again = {1: ImageEdits(1, (EditedBox(9, "boat", (32, 32, 16, 8)),))}
    assert sign(again, mine, {1: "Bob"})[1].reviewer == "Ada" and sign(again, {}, {1: "Bob"})[1].reviewer == "Bob"
    assert sign({1: ImageEdits(1, removed=(1,))}, mine, {})[1].reviewer is None


def test_training_reads_the_accepted_images_with_the_edited_boxes(generated, folders):
    before = (generated.folder / "annotations.json").read_bytes()
    write_decisions(generated.folder, generated, Decisions(frozenset({1}), {2: "reviewer"}))
    box = EditedBox(1, "boat", (1.0, 2.0, 30.0, 40.0))
    write_edits(generated.folder, {1: ImageEdits(1, (EditedBox(4, "car", (2, 2, 9, 9)),), (2,), (box,))})
    labels = training_labels(generated.folder, generated)
    assert [image.id for image in labels.images] == [1]
    names = {category.id: category.name for category in labels.categories}
    rows = [(a.id, names[a.category_id], a.bbox_xywh, a.area, a.extra) for a in labels.annotations]
    own = {"score": 1.0, "edited": True}
    assert rows == [(1, "boat", (1, 2, 30, 40), 1200, own), (4, "car", (2, 2, 9, 9), 81, own)]
    assert to_coco(read_generated(generated.folder, read_dataset(folders.real, "train"))) == to_coco(labels)
    assert (generated.folder / "annotations.json").read_bytes() == before
    out = folders.real.parent / "coco"
    export_dataset(generated.folder, out, "coco")
    sent = json.loads((out / "annotations" / "instances_train.json").read_text())
    assert [(a["id"], a["bbox"]) for a in sent["annotations"]] == [(1, [1, 2, 30, 40]), (4, [2, 2, 9, 9])]


def test_a_mask_of_the_old_box_does_not_stay(generated):
    drawn = [
        dataclasses.replace(a, extra=a.extra | {"segmentation": [[4, 8, 20, 8, 20, 28]]}) for a in generated.annotations
    ]
    write_dataset(generated.folder, "annotations", generated.images, drawn, generated.categories)
    dataset = read_dataset(generated.folder, "annotations")
    moved_box, renamed = EditedBox(1, "house", (1, 2, 30, 40)), EditedBox(2, "boat", dataset.annotations[1].bbox_xywh)
    write_edits(dataset.folder, {1: ImageEdits(1, changed=(moved_box, renamed))})
    first, second, third = with_edits(dataset.folder, dataset).annotations
    assert "segmentation" not in first.extra and "segmentation" in second.extra and third == dataset.annotations[2]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (ImageEdits(1, removed=(3,)), "image 1: it has no annotation 3"),
        (ImageEdits(1, changed=(EditedBox(1, "dog", (1, 1, 9, 9)),)), "image 1: box 1 is of the class 'dog'"),
        (ImageEdits(1, (EditedBox(9, "car", (60, 1, 9, 9)),)), "image 1: box 9 bbox .* sticks out"),
        (ImageEdits(1, (EditedBox(3, "car", (1, 1, 9, 9)),)), "the id 3 of an added box is in use"),
        (ImageEdits(7, removed=(1,)), "edits 1 images that annotations.json does not hold, the first: 7"),
    ],
)
def test_edits_that_do_not_fit_stop_training_with_the_cure(generated, edit, words):
    write_edits(generated.folder, {edit.image_id: edit})
    with pytest.raises(DatasetError, match=f"decisions.jsonl: .*{words}.*ollect from the App again"):
        training_labels(generated.folder, generated)


@pytest.mark.parametrize(
    "content",
    [
        "{", "[]", '{"image_id": 1}', "[" * 100,
        '{"image_id": 0, "added": [], "removed": [], "changed": [], "reviewer": null, "annotations": "a"}',
        '{"image_id": 1, "added": [{}], "removed": [], "changed": [], "reviewer": null, "annotations": "a"}',
        '{"image_id": 1, "added": [], "removed": [1, 1], "changed": [], "reviewer": null, "annotations": "a"}',
        '{"image_id": 1, "added": [], "removed": [true], "changed": [], "reviewer": null, "annotations": "a"}',
        '{"image_id": 1, "added": [], "removed": [], "changed": [], "reviewer": 5, "annotations": "a"}',
    ],
)  # fmt: skip
def test_a_broken_file_is_one_clear_error(generated, content):
    (generated.folder / "decisions.jsonl").write_text(content)
    with pytest.raises(DatasetError, match="decisions.jsonl.*Collect from the App again"):
        training_labels(generated.folder, generated)


def test_edits_of_another_annotations_file_and_repeated_images_are_refused(generated):
    path = write_edits(generated.folder, {1: ImageEdits(1, removed=(1,))})
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(DatasetError, match="entry 2: its image comes a second time"):
        read_edits(generated.folder)
    write_edits(generated.folder, {1: ImageEdits(1, removed=(1,))})
    annotations = generated.folder / "annotations.json"
    annotations.write_bytes(annotations.read_bytes() + b"\n")
    with pytest.raises(DatasetError, match="made for another annotations.json"):
        read_edits(generated.folder)


def test_edits_are_part_of_what_pins_a_generated_dataset(generated):
    manifest = dict.fromkeys(("plan", "annotations_sha256", "images_sha256", "data"), "x")
    manifest |= {"counts": {}, "classes": [], "settings": {}, "identity": {}, "seed": 0}
    (generated.folder / "manifest.json").write_text(json.dumps(manifest))
    before = generated_content(generated.folder)
    write_edits(generated.folder, {1: ImageEdits(1, removed=(1,))})
    after = generated_content(generated.folder)
    assert "edits_sha256" not in before and {**after, "edits_sha256": None} == {**before, "edits_sha256": None}
    assert len(after["edits_sha256"]) == 64
