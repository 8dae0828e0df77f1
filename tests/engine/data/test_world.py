import numpy as np

from engine.data.dataset import read_dataset
from engine.data.segmentation import decode_masks
from engine.data.sources import read_sources
from engine.data.world import CLASSES, SIZE, render_scene
from engine.data.world_folder import FIRST_SCENE, write_world
from engine.ldm import pretrain


def test_a_seed_is_a_scene():
    one, again, other = render_scene(7), render_scene(7), render_scene(8)
    assert np.array_equal(np.asarray(one.image), np.asarray(again.image)) and one.objects == again.objects
    assert not np.array_equal(np.asarray(one.image), np.asarray(other.image))


def test_boxes_are_tight_and_inside():
    for seed in range(40):
        scene = render_scene(seed)
        assert scene.objects
        for item in scene.objects:
            x, y, w, h = item.box_xywh
            assert 0 <= x and 0 <= y and x + w <= SIZE and y + h <= SIZE
            assert 0 < item.visible_area <= w * h
            assert item.class_name in CLASSES and item.class_name in scene.caption


def test_a_written_world_is_a_dataset_of_disjoint_scenes(tmp_path):
    write_world(tmp_path, 5, 4, 3, seed=1)
    pictures = {}
    for split, count in (("train", 5), ("val", 4), ("test", 3)):
        dataset = read_dataset(tmp_path, split)
        assert len(dataset.images) == count and [c.name for c in dataset.categories] == list(CLASSES)
        for image in dataset.images:
            pictures[dataset.image_path(image).read_bytes()] = split
    assert len(pictures) == 12


def test_the_masks_of_a_written_world_fill_their_boxes_and_do_not_overlap(tmp_path):
    write_world(tmp_path, 20, 1, 1)
    dataset = read_dataset(tmp_path, "train")
    for image in dataset.images:
        annotations = dataset.annotations_of(image.id)
        masks = decode_masks([a.extra["segmentation"] for a in annotations], (SIZE, SIZE))
        assert masks.sum(axis=0).max() == 1
        for annotation, mask in zip(annotations, masks, strict=True):
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            x, y, w, h = annotation.bbox_xywh
            # Inside the box to the pixel; a mast thinner than half a pixel is in the box and not in the mask.
            assert x - 1 < columns[0] and columns[-1] + 1 < x + w + 1 and y - 1 < rows[0] and rows[-1] + 1 < y + h + 1
            assert abs(mask.sum() - annotation.area) <= 0.15 * annotation.area


def test_scenes_of_datasets_are_not_those_of_the_diffusion_model():
    assert pretrain.FIRST_SEED + pretrain.PretrainSettings().scenes + 1000 < FIRST_SCENE


def test_a_sketch_shows_the_same_objects_in_other_looks(tmp_path):
    for domain in ("paint", "sketch"):
        write_world(tmp_path / domain, 6, 1, 1, domain=domain)
    paint, sketch = (read_dataset(tmp_path / domain, "train") for domain in ("paint", "sketch"))
    assert sketch.annotations == paint.annotations and sketch.images == paint.images
    for record in paint.images:
        painted, drawn = (np.asarray(d.load(record)).astype(float) for d in (paint, sketch))
        assert np.array_equal(painted, np.asarray(render_scene(_seed_of(record)).image))
        colourful = [np.ptp(pixels, axis=2).mean() for pixels in (painted, drawn)]
        assert colourful[1] < 15 < colourful[0]
        # lines are where objects are: the darkest pixels lie in or at a box
        boxes = np.zeros(drawn.shape[:2], bool)
        for annotation in sketch.annotations_of(record.id):
            x, y, w, h = annotation.bbox_xywh
            boxes[max(0, int(y) - 1) : int(y + h) + 2, max(0, int(x) - 1) : int(x + w) + 2] = True
        assert boxes[drawn.mean(axis=2) < 80].mean() > 0.5


def _seed_of(record) -> int:
    return FIRST_SCENE + record.id - 1


def test_a_written_world_may_have_pictures_without_labels_and_they_change_nothing_else(tmp_path):
    write_world(tmp_path / "plain", 3, 2, 2, seed=1)
    write_world(tmp_path / "more", 3, 2, 2, seed=1, unlabelled=4)
    for split in ("train", "val", "test"):
        assert read_dataset(tmp_path / "plain", split).digest() == read_dataset(tmp_path / "more", split).digest()
    bare = read_dataset(tmp_path / "more", "unlabelled")
    assert len(bare.images) == 4 and not bare.annotations and not any(image.extra for image in bare.images)
    sources = read_sources(tmp_path / "more", unlabelled=True)
    assert len({np.asarray(sources.load(image)).tobytes() for image in sources.images}) == 7
    assert not (tmp_path / "plain" / "unlabelled.json").exists()
