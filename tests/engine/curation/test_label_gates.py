"""Gates on boxes, classes, scores, box counts and agreement: each catches a bad image, none fires on good ones."""

from __future__ import annotations

import dataclasses
import math

import pytest

from engine.curation.gates import judge
from engine.curation.label_gates import label_agreement
from engine.data.dataset import Annotation
from engine.data.world import render_scene
from engine.sections import ReviewSettings


@pytest.fixture
def drawn(folders):
    """Three images, one sound box each."""
    return folders.generate([render_scene(s).image for s in (100, 101, 102)], [1, 2, 3], [[0.9]] * 3)


def _verdicts(generated, folders, **settings):
    return judge(generated, folders.splits(), ReviewSettings(**settings)).verdicts


def _with(generated, *changes):
    """The dataset with its first annotations changed, as `read_dataset` might refuse to give it."""
    changed = [dataclasses.replace(a, **c) for a, c in zip(generated.annotations, changes, strict=False)]
    return dataclasses.replace(generated, annotations=(*changed, *generated.annotations[len(changes) :]))


@pytest.mark.parametrize(
    "box, words",
    [
        ((math.nan, 8.0, 16.0, 20.0), "finite"),
        ((4.0, 8.0, math.inf, 20.0), "finite"),
        ((50.0, 8.0, 16.0, 20.0), "sticks out"),
        ((-3.0, 8.0, 16.0, 20.0), "sticks out"),
        ((4.0, 8.0, 0.0, 20.0), "no area"),
        ((4.0, 8.0, 16.0, 0.5), "below 1 pixel"),
    ],
)
def test_a_box_that_cannot_be_one_fails_its_image_alone(drawn, folders, box, words):
    first, *others = _verdicts(_with(drawn, {"bbox_xywh": box}), folders)
    assert first.outcome == "fail" and first.reasons == ("bad_box",) and words in first.note
    assert "label_agreement" not in first.scores, "unusable labels are compared with nothing"
    assert all(verdict.outcome == "pass" for verdict in others)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"category_id": 77}, "class 77"),
        ({"extra": {"score": 1.5}}, "score 1.5"),
        ({"extra": {"score": -0.1}}, "score -0.1"),
        ({"extra": {"score": math.nan}}, "score nan"),
        ({"extra": {"score": "high"}}, "score 'high'"),
    ],
)
def test_labels_of_no_class_or_without_a_usable_score_fail(drawn, folders, change, words):
    first, *others = _verdicts(_with(drawn, change), folders)
    assert first.reasons == ("bad_label",) and words in first.note and not first.accepted
    assert all(verdict.outcome == "pass" for verdict in others)


def test_far_more_boxes_than_any_real_image_fail_and_nearly_so_many_are_borderline(folders):
    most = max(len(render_scene(seed).objects) for seed in range(4))
    counts = (most, 2 * most, 2 * most + 1)
    pictures = [render_scene(seed).image for seed in (100, 101, 102)]
    generated = folders.generate(pictures, [1, 2, 3], [[0.9] * number for number in counts])
    assert [v.outcome for v in _verdicts(generated, folders)] == ["pass"] * 3, "the default lets twice as many through"
    verdicts = _verdicts(generated, folders, box_count_factor=2.0)
    assert [v.outcome for v in verdicts] == ["pass", "borderline", "fail"]
    assert verdicts[1].doubts == verdicts[2].reasons == ("too_many_boxes",)
    assert not verdicts[1].accepted and verdicts[1].note.startswith("borderline: too_many_boxes")
    assert [v.outcome for v in _verdicts(generated, folders, box_count_factor=0.0)] == ["pass"] * 3


def test_scores_near_the_threshold_are_borderline_and_taken_where_asked_for(folders):
    pictures = [render_scene(seed).image for seed in (100, 101, 102)]
    generated = folders.generate(pictures, [1, 2, 3], [[0.49], [0.52], [0.56]])
    verdicts = _verdicts(generated, folders, min_mean_score=0.5)
    assert [(v.outcome, v.accepted) for v in verdicts] == [("fail", False), ("borderline", False), ("pass", True)]
    assert verdicts[1].doubts == ("low_score",) and verdicts[1].reasons == ()
    taken = _verdicts(generated, folders, min_mean_score=0.5, accept_borderline=True)
    assert [(v.outcome, v.accepted) for v in taken] == [("fail", False), ("borderline", True), ("pass", True)]
    none = _verdicts(generated, folders, min_mean_score=0.5, borderline_margin=0.0)
    assert [v.outcome for v in none] == ["fail", "pass", "pass"]


def _labelled(folders, boxes_of, mode="img2img"):
    """Generated image 1, 2, ... of train image 1, 2, ..., with labels made of the source's."""
    train = folders.splits()["train"]
    pictures = [render_scene(100 + n).image for n in range(4)]
    generated = folders.generate(pictures, [1, 2, 3, 4], [[]] * 4)
    labels, number = [], 0
    for image in generated.images:
        image.extra["de"]["mode"] = mode
        for category_id, box in boxes_of(image.id, train.annotations_of(image.id)):
            number += 1
            labels.append(Annotation(number, image.id, category_id, box, box[2] * box[3], 0, {"score": 0.9}))
    return dataclasses.replace(generated, annotations=tuple(labels)), train


def _faithful(image_id, truth):
    """As the source says; image 2 one class wrong, image 3 nothing found, image 4 one box too many."""
    boxes = [(a.category_id, a.bbox_xywh) for a in truth]
    if image_id == 2:
        boxes[0] = (boxes[0][0] % 6 + 1, boxes[0][1])
    if image_id == 4:
        boxes.append((1, (0.0, 0.0, 2.0, 2.0)))
    return [] if image_id == 3 else boxes


def test_agreement_is_the_f1_against_the_source_and_has_an_optional_minimum(folders):
    generated, train = _labelled(folders, _faithful)
    objects = {image.id: len(train.annotations_of(image.id)) for image in train.images}
    agreement = label_agreement(generated, train, {1, 2, 3, 4})
    right = {1: 1.0, 2: 1 - 1 / objects[2], 3: 0.0, 4: 2 * objects[4] / (2 * objects[4] + 1)}
    assert agreement == {image_id: pytest.approx(value) for image_id, value in right.items()}

    verdicts = _verdicts(generated, folders)
    assert all(verdict.outcome == "pass" for verdict in verdicts), "without a minimum it is a score and no more"
    assert {v.image_id: v.scores["label_agreement"] for v in verdicts} == agreement
    verdicts = _verdicts(generated, folders, min_label_agreement=0.5)
    assert verdicts[0].outcome == verdicts[3].outcome == "pass"
    assert verdicts[2].reasons == ("label_disagreement",) and "encode ratio 0.50" in verdicts[2].note


def test_agreement_is_undefined_where_nothing_says_what_should_be_there(folders):
    generated, train = _labelled(folders, _faithful, mode="text_to_image")
    assert label_agreement(generated, train, {1, 2, 3, 4}) == {}
    generated, train = _labelled(folders, _faithful)
    unlabelled = dataclasses.replace(train, annotations=tuple(a for a in train.annotations if a.image_id != 1))
    assert set(label_agreement(generated, unlabelled, {1, 2, 3, 4})) == {2, 3, 4}


def test_agreement_is_measured_in_the_pixels_of_the_generated_image(folders):
    generated, train = _labelled(folders, lambda image_id, truth: [(a.category_id, a.bbox_xywh) for a in truth])
    doubled = dataclasses.replace(
        generated,
        images=tuple(dataclasses.replace(i, width=2 * i.width, height=2 * i.height) for i in generated.images),
        annotations=tuple(
            dataclasses.replace(a, bbox_xywh=tuple(2 * v for v in a.bbox_xywh)) for a in generated.annotations
        ),
    )
    assert label_agreement(doubled, train, {1, 2, 3, 4}) == {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}
