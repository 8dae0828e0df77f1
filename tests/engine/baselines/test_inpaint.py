from __future__ import annotations

import dataclasses
import io
import shutil

import numpy as np
import pytest
from PIL import Image

from engine.baselines.inpaint import feathered, inpaint, kept_cells
from engine.baselines.masks import mask_of
from engine.baselines.request import BaselineRequest, Outcome
from engine.config import load_settings
from engine.data.dataset import read_dataset, write_dataset
from engine.data.pixels import read_pixels, to_model, to_uint8
from engine.errors import DatasetError
from engine.ldm.diffusion import load_ldm
from engine.ldm.sampling import SampleRequest, sample

SETS = [
    *("generation.steps=5", "generation.jpeg_quality=100", "generation.rows_per_call=4", "ldm.device=cpu"),
    *("generation.batch_size=4", "generation.guidance_min=2.0", "generation.guidance_max=2.0", "ldm.resolution=64"),
    *("generation.strength_min=0.8", "generation.strength_max=0.8", "ldm.id=world"),
]
SETTINGS = load_settings(None, SETS)
JPEG = 8  # grey levels that quality 100 may be off, on edges of the strongest colours


@pytest.fixture(scope="module")
def drawn(world_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("inpaint") / "out"
    return draw(world_folder, out, 9, seed=3), out


def draw(data, out, images, seed=0, settings=SETTINGS):
    return inpaint(BaselineRequest(out, settings, data, images=images, seed=seed))


def sources_of(world_folder, out):
    """(source record, drawn record) of all images, and both datasets."""
    train, made = read_dataset(world_folder, "train"), read_dataset(out, "annotations")
    by_id = {record.id: record for record in train.images}
    return train, made, [(by_id[r.extra["de"]["source_image_id"]], r) for r in made.images]


def relabelled(world_folder, folder, images, annotations):
    """A copy of the training pictures with other annotations."""
    shutil.copytree(world_folder / "images", folder / "images")
    write_dataset(folder, "train", images, annotations, read_dataset(world_folder, "train").categories)


def test_objects_keep_pixels_and_boxes_and_the_background_is_another(world_folder, drawn):
    counts, out = drawn
    train, made, pairs = sources_of(world_folder, out)
    assert counts == Outcome(9, len(made.annotations)) and len(pairs) == 9
    assert len({source.id for source, _ in pairs}) == 8  # all sources before any again
    for source, record in pairs:
        own, given = made.annotations_of(record.id), train.annotations_of(source.id)
        assert [(a.category_id, a.bbox_xywh, a.iscrowd) for a in own] == [
            (a.category_id, a.bbox_xywh, a.iscrowd) for a in given
        ]
        objects = np.any([mask_of(a, source) for a in given], axis=0)
        before, after = (np.asarray(d.load(r)).astype(int) for d, r in ((train, source), (made, record)))
        assert np.abs(before - after)[objects].max() <= JPEG
        assert np.abs(before - after)[~objects].mean() > 4


def test_the_model_sees_the_objects_while_it_draws(world_folder, drawn):
    """What is around an object in the cells that it lies in comes from the source, though nothing is pasted there."""
    train, made, pairs = sources_of(world_folder, drawn[1])
    near, far = [], []
    for source, record in pairs:
        objects = np.any([mask_of(a, source) for a in train.annotations_of(source.id)], axis=0)
        cells = np.kron(kept_cells(objects, 4).numpy(), np.ones((4, 4), dtype=bool))
        pasted = np.asarray(feathered(objects)) > 0
        before, after = (np.asarray(d.load(r)).astype(int) for d, r in ((train, source), (made, record)))
        near.append(np.abs(before - after)[cells & ~pasted].mean())
        far.append(np.abs(before - after)[~cells].mean())
    assert np.mean(near) < 0.6 * np.mean(far)


def test_cells_are_kept_where_an_object_or_its_rim_lies():
    mask = np.zeros((64, 128), dtype=bool)
    mask[7, 7] = mask[30, 100] = True
    assert kept_cells(mask, 8).nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [3, 12]]


def test_every_image_says_how_it_was_made(world_folder, drawn):
    train, _, pairs = sources_of(world_folder, drawn[1])
    for source, record in pairs:
        de = record.extra["de"]
        assert (de["mode"], de["item"], de["strength"], de["guidance_scale"]) == ("inpaint", record.id, 0.8, 2.0)
        assert de["prompt"] == source.extra["caption"] and de["negative_prompt"] == ""
    assert len({record.extra["de"]["seed"] for _, record in pairs}) == 9


def test_the_same_seed_gives_the_same_bytes_however_many_are_drawn_together(world_folder, drawn, tmp_path):
    settings = load_settings(None, [*SETS, "generation.batch_size=2"])
    draw(world_folder, tmp_path / "again", 9, 3, settings)
    draw(world_folder, tmp_path / "other", 9, 4, settings)
    first, again, other = (read_dataset(at, "annotations") for at in (drawn[1], tmp_path / "again", tmp_path / "other"))
    assert first.digest() == again.digest() != other.digest()


def test_an_image_without_objects_is_plain_img2img(world_folder, tmp_path):
    train = read_dataset(world_folder, "train")
    images = train.images[:1]
    relabelled(world_folder, tmp_path / "bare", images, [])
    assert draw(tmp_path / "bare", tmp_path / "out", 1) == Outcome(1, 0)
    made = read_dataset(tmp_path / "out", "annotations")
    de = made.images[0].extra["de"]
    numbers = (de["strength"], de["guidance_scale"], de["eta"])
    pixels = to_model(read_pixels(train, images[0], (64, 64)))[None]
    ldm = load_ldm("world", device="cpu")
    plain = sample(ldm, [SampleRequest(de["seed"], de["prompt"], "", *numbers)], 5, pixels, label_pass="none")
    file = io.BytesIO()
    Image.fromarray(to_uint8(plain.images[0])).save(file, "JPEG", quality=100, subsampling=0)
    assert np.abs(np.asarray(Image.open(file)).astype(int) - np.asarray(made.load(made.images[0]))).max() <= 3


def test_boxes_and_objects_follow_the_size_that_is_drawn_at(world_folder, tmp_path):
    draw(world_folder, tmp_path / "out", 2, settings=load_settings(None, [*SETS, "ldm.resolution=96"]))
    train, made, pairs = sources_of(world_folder, tmp_path / "out")
    for source, record in pairs:
        assert (record.width, record.height) == (96, 96) == made.load(record).size
        large = read_pixels(train, source, (96, 96)).permute(1, 2, 0).numpy().astype(int)
        for a, b in zip(train.annotations_of(source.id), made.annotations_of(record.id), strict=True):
            np.testing.assert_allclose(b.bbox_xywh, np.multiply(a.bbox_xywh, 1.5))
            mask = mask_of(a, source, (96, 96))
            assert np.abs(large - np.asarray(made.load(record)))[mask].max() <= JPEG


def test_without_masks_whole_boxes_are_kept_and_ignore_regions_too(world_folder, tmp_path):
    train = read_dataset(world_folder, "train")
    bare = [dataclasses.replace(a, extra={}, iscrowd=int(n == 0)) for n, a in enumerate(train.annotations)]
    relabelled(world_folder, tmp_path / "boxes", train.images, bare)
    assert draw(tmp_path / "boxes", tmp_path / "out", 8).ignored == 1
    train, made, pairs = sources_of(tmp_path / "boxes", tmp_path / "out")
    for source, record in pairs:
        before, after = (np.asarray(d.load(r)).astype(int) for d, r in ((train, source), (made, record)))
        for a in made.annotations_of(record.id):
            assert np.abs(before - after)[mask_of(a, record)].max() <= JPEG


def test_a_picture_that_cannot_be_read_stops_the_run(world_folder, tmp_path):
    images = read_dataset(world_folder, "train").images[:1]
    relabelled(world_folder, tmp_path / "broken", images, [])
    (tmp_path / "broken" / "images" / images[0].file_name).write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=f"{images[0].file_name} is no picture"):
        draw(tmp_path / "broken", tmp_path / "out", 1)
