import numpy as np
import pytest
from scipy import ndimage

from engine.data.dataset import read_dataset
from engine.data.failure_cases import CASES, FIRST_SEED, LAST_SEED, render_case, write_failure_cases
from engine.data.world import CLASSES, OVERSAMPLE, SIZE, box_of
from engine.data.world_folder import FIRST_SCENE
from engine.ldm import pretrain

SOME = 6


def words(drawn) -> list[str]:
    return drawn.scene.caption.split()


def shown(drawn) -> list[str]:
    return [item.class_name for item in drawn.scene.objects]


@pytest.fixture(scope="module")
def drawn():
    return {case: [render_case(case, i) for i in range(SOME)] for case in CASES}


def test_touching_objects_are_two_of_one_class_that_make_one_region(drawn):
    for item in drawn["touching"]:
        first, second = item.masks
        assert shown(item) == [item.subject] * 2 and words(item).count(item.subject) == 2
        assert not (first & second).any() and ndimage.label(first | second)[1] == 1
        for mask, truth in zip(item.masks, item.scene.objects, strict=True):
            assert ndimage.label(mask)[1] == 1 and truth.box_xywh == box_of(mask)
        (ax, ay, aw, ah), (bx, by, bw, bh) = (o.box_xywh for o in item.scene.objects)
        gap = 1 / OVERSAMPLE  # boxes overlap, or lie side by side
        assert max(ax, bx) - min(ax + aw, bx + bw) <= gap and max(ay, by) - min(ay + ah, by + bh) <= gap
        assert all(
            0 < x and 0 < y and x + w < SIZE and y + h < SIZE for x, y, w, h in ((ax, ay, aw, ah), (bx, by, bw, bh))
        )


def test_an_object_in_parts_is_seen_in_several_and_has_one_box_around_all(drawn):
    for item in drawn["parts"]:
        (mask,), (truth,) = item.masks, item.scene.objects
        regions, _ = ndimage.label(mask)
        sizes = np.bincount(regions.ravel())[1:]
        large = [number + 1 for number in np.flatnonzero(sizes >= 0.2 * mask.sum())]
        assert len(large) >= 2 and item.subject == truth.class_name and item.subject in words(item)
        x, y, w, h = truth.box_xywh
        for number in large:
            px, py, pw, ph = box_of(regions == number)
            assert x <= px and y <= py and px + pw <= x + w and py + ph <= y + h and pw * ph < w * h


def test_the_post_is_drawn_between_the_parts(drawn):
    """The one colour that most pixels beside the object have cuts the picture, with a good part of it on both sides."""
    for item in drawn["parts"]:
        (mask,), pixels = item.masks, np.asarray(item.scene.image)
        visible = mask.reshape(SIZE, OVERSAMPLE, SIZE, OVERSAMPLE).mean(axis=(1, 3))
        colours, counts = np.unique(pixels[visible == 0], axis=0, return_counts=True)
        post = (pixels == colours[counts.argmax()]).all(axis=2)
        sides, _ = ndimage.label(~post)
        shares = np.bincount(sides.ravel(), weights=visible.ravel())[1:] / visible.sum()
        assert (shares >= 0.2).sum() == 2 and visible[post].sum() == 0


def test_a_prompted_class_that_is_not_drawn(drawn):
    for item in drawn["not_drawn"]:
        assert item.subject in words(item) and item.subject not in shown(item)
        assert set(shown(item)) <= set(words(item)) and item.scene.objects


def test_a_drawn_class_that_is_not_prompted(drawn):
    for item in drawn["not_prompted"]:
        assert item.subject in shown(item) and item.subject not in words(item)
        assert set(shown(item)) - {item.subject} == set(words(item)) & set(CLASSES) != set()


def test_an_index_is_a_scene(drawn):
    for case, items in drawn.items():
        again = render_case(case, 2)
        assert np.array_equal(np.asarray(again.scene.image), np.asarray(items[2].scene.image))
        assert again.scene.objects == items[2].scene.objects and again.scene.caption == items[2].scene.caption
        assert len({item.scene.image.tobytes() for item in items}) == SOME


def test_no_other_split_has_these_seeds():
    for settings in (pretrain.PretrainSettings(), pretrain.CONTINUED):
        assert settings.first_seed + settings.scenes + 1000 < FIRST_SEED
    assert LAST_SEED <= FIRST_SCENE


def test_every_case_is_written_as_a_dataset(tmp_path, drawn):
    folders = write_failure_cases(tmp_path, 2)
    assert list(folders) == list(CASES)
    for case, folder in folders.items():
        data = read_dataset(folder, "test")
        assert [c.name for c in data.categories] == list(CLASSES) and len(data.images) == 2
        for image, item in zip(data.images, drawn[case], strict=False):
            assert image.extra == {"caption": item.scene.caption, "subject": item.subject}
            assert [a.bbox_xywh for a in data.annotations_of(image.id)] == [o.box_xywh for o in item.scene.objects]
            assert np.array_equal(np.asarray(data.load(image)), np.asarray(item.scene.image))
