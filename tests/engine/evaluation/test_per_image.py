import numpy as np
import pytest

from engine.evaluation.matching import image_results
from engine.evaluation.per_image import found_first, largest_changes, shown_boxes

BOXES = [(0, 0, 20, 20), (100, 100, 30, 30), (200, 200, 40, 40)]


@pytest.mark.parametrize("seed", range(3))
def test_counts_of_all_images_are_those_of_each_image_alone(make_case, seed):
    dataset, detections = make_case(seed, images=12)
    found = found_first(image_results(dataset, detections))
    for image_id, count in zip(sorted(image.id for image in dataset.images), found, strict=True):
        shown = shown_boxes(dataset, image_id, detections)
        objects = [a for a in dataset.annotations_of(image_id) if not a.iscrowd]
        assert len(shown.found) == count and len(shown.missed) == len(objects) - count
        assert len(shown.found) + len(shown.wrong) <= len(objects)
        assert not {a.id for a in shown.missed} - {a.id for a in objects}
    assert found.sum() > 3


def test_only_the_n_surest_boxes_count(make_dataset, make_detection):
    dataset = make_dataset([1], [(1, "a"), (2, "b")], [(1, 1, BOXES[0], 0), (1, 2, BOXES[1], 0)])
    right, late = make_detection(1, 1, BOXES[0], 0.9), make_detection(1, 2, BOXES[1], 0.2)
    wrong_class = make_detection(1, 1, BOXES[1], 0.8)
    assert found_first(image_results(dataset, [late, right])).tolist() == [2]
    assert found_first(image_results(dataset, [late, right, wrong_class])).tolist() == [1]
    shown = shown_boxes(dataset, 1, [late, right, wrong_class])
    assert (shown.found, shown.wrong) == ([right], [wrong_class])
    assert [a.bbox_xywh for a in shown.missed] == [BOXES[1]]


def test_boxes_in_an_ignore_region_take_no_place(make_dataset, make_detection):
    dataset = make_dataset([1], [(1, "a")], [(1, 1, BOXES[0], 0), (1, 1, BOXES[2], 1)])
    detections = [make_detection(1, 1, BOXES[2], 0.9), make_detection(1, 1, BOXES[0], 0.4)]
    assert found_first(image_results(dataset, detections)).tolist() == [1]
    shown = shown_boxes(dataset, 1, detections)
    assert (shown.found, shown.wrong, shown.missed) == (detections[1:], [], [])


def changes_of(make_dataset, make_detection, before, after, most=4):
    """before, after: per seed the images (1 to 5) whose one object is found; image 6 has none."""
    dataset = make_dataset(range(1, 7), [(1, "a")], [(i, 1, BOXES[0], 0) for i in range(1, 6)])

    def results(found):
        return image_results(dataset, [make_detection(i, 1, BOXES[0], 0.5) for i in found])

    seeds = [10 + n for n in range(len(before))]
    return largest_changes([results(f) for f in before], [results(f) for f in after], seeds, most)


def test_the_seed_in_the_middle_decides(make_dataset, make_detection):
    # image 1 is gained by two seeds of three, 2 by one only, 3 lost by all, 4 found by all, 5 by none
    changes = changes_of(make_dataset, make_detection, [{3, 4}, {1, 3, 4}, {3, 4}], [{1, 2, 4}, {1, 4}, {1, 4}])
    assert changes["images"] == {"better": 1, "worse": 1, "same": 3, "empty": 1}
    assert changes["better"] == [{"image_id": 1, "seed": 10, "objects": 1, "found": [0, 1], "change": 1.0}]
    assert [(e["image_id"], e["found"]) for e in changes["worse"]] == [(3, [1, 0])]


def test_of_two_seeds_both_must_agree(make_dataset, make_detection):
    changes = changes_of(make_dataset, make_detection, [{2}, {3}], [{1, 3}, {1, 2, 3}])
    assert [e["image_id"] for e in changes["better"]] == [1] and changes["worse"] == []


def test_largest_first_then_more_objects(make_dataset, make_detection):
    boxes = [(1, 1, BOXES[0], 0), (2, 1, BOXES[0], 0), (2, 1, BOXES[1], 0), *((3, 1, b, 0) for b in BOXES)]
    dataset = make_dataset([1, 2, 3], [(1, "a")], boxes)
    found = [make_detection(i, 1, b, 0.5) for i, _, b, _ in boxes if (i, b) != (3, BOXES[2])]
    changes = largest_changes([image_results(dataset, [])] * 2, [image_results(dataset, found)] * 2, [0, 1], most=2)
    assert [e["image_id"] for e in changes["better"]] == [2, 1]
    assert changes["images"]["better"] == 3 and np.isclose(changes["better"][0]["change"], 1.0)
