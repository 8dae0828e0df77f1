from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from engine.report.pictures import contact_sheet, draw_boxes, enlarge, label_colours

GREY = Image.new("RGB", (64, 48), (128, 128, 128))


def changed(image, size=(64, 48)):
    """Boolean (H, W): pixels that are not plain grey."""
    return (np.abs(np.asarray(image, dtype=int) - 128) > 20).any(axis=2)


def test_boxes_are_drawn_where_they_are():
    drawn = draw_boxes(GREY, [(20, 30, 30, 12)], ["cat"], [0.5], colours={"cat": "#ff0000"}, short_edge=480)
    assert drawn.size == (640, 480)
    red = (np.asarray(drawn) == (255, 0, 0)).all(axis=2)
    rows, columns = np.where(red)
    assert abs(columns.min() - 200) <= 1 and abs(columns.max() - 500) <= 1 and abs(rows.max() - 420) <= 1
    assert not changed(drawn)[310:410, 210:490].any()  # the object itself stays free of ink
    assert changed(drawn)[250:299].any()  # the tag above the box


def test_the_picture_given_is_left_alone():
    image = GREY.copy()
    draw_boxes(image, [(0, 0, 10, 10)], ["a"], [1.0], short_edge=10)
    assert not changed(image).any()


def test_class_and_score_change_the_tag():
    def tag(label, score):
        scores = None if score is None else [score]
        return draw_boxes(GREY, [(10, 20, 20, 20)], [label], scores, colours={label: "#000000"}).tobytes()

    assert len({tag("cat", 0.5), tag("cat", 0.6), tag("dog", 0.5), tag("cat", None)}) == 4


@pytest.mark.parametrize("box", [(-30, -30, 10, 10), (60, 40, 500, 500), (10, 10, 0.01, 0.01), (63.9, 47.9, 0.1, 0.1)])
def test_odd_boxes_do_not_break_the_picture(box):
    assert draw_boxes(GREY, [box], ["a"], [0.1]).size == (427, 320)


def test_hostile_labels_do_not_break_the_picture():
    for label in ("", "x" * 5000, "a\nb\0c\u202e", "细胞", "\ud800"):
        draw_boxes(GREY, [(1, 1, 5, 5)], [label], [0.1])


def test_many_boxes_and_ignored_regions():
    boxes = [(n, n, 8, 8) for n in range(30)]
    assert changed(draw_boxes(GREY, boxes, ["a", "b"] * 15, [0.5] * 30)).any()
    drawn = draw_boxes(GREY, [], [], [], ignored_xywh=[(10, 10, 20, 20)])
    assert changed(drawn).any()


def test_as_many_labels_as_boxes():
    with pytest.raises(ValueError, match="labels"):
        draw_boxes(GREY, [(0, 0, 1, 1)], [], [0.5])
    with pytest.raises(ValueError, match="scores"):
        draw_boxes(GREY, [(0, 0, 1, 1)], ["a"], [])


def test_enlarge_keeps_the_aspect_and_large_pictures():
    assert enlarge(GREY, 240).size == (320, 240)
    assert enlarge(Image.new("L", (900, 600)), 240).size == (900, 600)
    assert enlarge(Image.new("L", (9, 6)), 4).mode == "RGB"


def test_colours_are_stable_and_differ():
    colours = label_colours(["b", "a", "b"])
    assert list(colours) == ["b", "a"] and len(set(colours.values())) == 2
    assert colours == label_colours(["b", "a"])


def test_contact_sheet():
    sheet = contact_sheet([GREY] * 5, columns=3, cell=60, gap=5, captions=["a" * 300] * 5)
    assert sheet.width == 3 * 65 + 5
    assert contact_sheet([GREY], columns=9, cell=60, gap=5).size == (70, 70)
    middle = np.asarray(contact_sheet([GREY], cell=60, gap=5))[35, 35]
    assert middle.tolist() == [128, 128, 128]
    for arguments in ({"images": []}, {"images": [GREY], "captions": []}, {"images": [GREY], "columns": 0}):
        with pytest.raises(ValueError, match="sheet"):
            contact_sheet(**arguments)
