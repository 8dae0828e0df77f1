"""The pool: what review accepted of several generated datasets, as one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from engine.config import load_settings
from engine.curation.decisions import Decisions, write_decisions
from engine.curation.edits import EditedBox, ImageEdits, write_edits
from engine.curation.pool import copy_pool, merge_pool
from engine.data.dataset import read_dataset, write_dataset
from engine.data.records import Annotation, Category, ImageRecord
from engine.errors import DatasetError
from engine.generation.contents import generated_content
from engine.generation.integrity import check_unchanged
from engine.generation.records import ShardCounts
from engine.generation.run import generate

sys.path.append(str(Path(__file__).parents[1] / "generation"))  # of stub_drawer


@pytest.fixture
def draw(tmp_path):
    """Draws a dataset with a seed; only the drawer is a stand-in."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "adapter").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "data" / "images" / "1.png")
    box = Annotation(1, 1, 2, (2.0, 3.0, 10.0, 9.0), 90.0, 0, {})
    categories = [Category(i, f"class{i}") for i in (2, 5, 9)]
    write_dataset(tmp_path / "data", "train", [ImageRecord(1, "1.png", 32, 32, {})], [box], categories)
    settings = load_settings(None, ["ldm.resolution=32", "generation.ignore_threshold=0.1"])

    def run(name: str, seed: int) -> Path:
        folders = (tmp_path / "data", "stub", tmp_path / "adapter", tmp_path / name)
        generate(*folders, 6, seed, settings, loader="stub_drawer:load")
        return tmp_path / name

    return run


def reject(folder: Path, *ids: int) -> None:
    dataset = read_dataset(folder, "annotations")
    accepted = frozenset(image.id for image in dataset.images) - set(ids)
    write_decisions(folder, dataset, Decisions(accepted, {i: "duplicate: of another" for i in ids}))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_accepted_images_come_with_boxes_provenance_and_new_ids(draw, tmp_path):
    one, two = draw("one", 1), draw("two", 2)
    first, second = (read_dataset(folder, "annotations") for folder in (one, two))
    dropped = first.images[0]
    reject(one, dropped.id)
    manifest = merge_pool([one, two], tmp_path / "pool")
    pool = read_dataset(tmp_path / "pool", "annotations")
    check_unchanged(pool.folder, pool.images)
    wanted = [(first, image) for image in first.images if image is not dropped] + [(second, i) for i in second.images]
    assert [image.id for image in pool.images] == list(range(1, len(wanted) + 1)) and manifest["images"] == len(wanted)
    assert [box.id for box in pool.annotations] == list(range(1, len(pool.annotations) + 1))
    for (dataset, image), new in zip(wanted, pool.images, strict=True):
        assert new.extra == image.extra and (new.width, new.height) == (image.width, image.height)
        assert pool.image_path(new).samefile(dataset.image_path(image))
        boxes = [(b.category_id, b.bbox_xywh, b.iscrowd, b.extra) for b in dataset.annotations_of(image.id)]
        assert [(b.category_id, b.bbox_xywh, b.iscrowd, b.extra) for b in pool.annotations_of(new.id)] == boxes
    counts = ShardCounts.from_dict(manifest["counts"])
    assert counts.adds_up and counts.planned == 12 and counts.dropped["rejected"] == 1
    assert counts.boxes + counts.ignored == len(pool.annotations)
    assert sum(entry["boxes"] for entry in manifest["classes"]) == counts.boxes


def test_a_pool_grows_and_what_was_in_it_keeps_its_ids(draw, tmp_path):
    one, two, three = draw("one", 1), draw("two", 2), draw("three", 3)
    merge_pool([one, two], tmp_path / "small")
    merge_pool([tmp_path / "small", three], tmp_path / "large")
    small, large = (read_dataset(tmp_path / name, "annotations") for name in ("small", "large"))
    assert large.images[: len(small.images)] == small.images
    assert large.annotations[: len(small.annotations)] == small.annotations
    merge_pool([one, two, three], tmp_path / "at_once")
    names = ("annotations.json", *[f"images/{image.file_name}" for image in large.images])
    assert [(tmp_path / "at_once" / n).read_bytes() for n in names] == [(large.folder / n).read_bytes() for n in names]


def test_boxes_that_a_person_edited_join_as_they_were_left(draw, tmp_path):
    one, pool = draw("one", 1), tmp_path / "pool"
    before = merge_pool([one], pool)
    drawn = read_dataset(one, "annotations")
    box = next(a for a in drawn.annotations if not a.iscrowd)
    left = EditedBox(box.id, "class5", (1.0, 2.0, 8.0, 9.0))
    write_edits(one, {box.image_id: ImageEdits(box.image_id, changed=(left,))})
    after = merge_pool([one], pool)
    assert after["plan"] != before["plan"] and "edits_sha256" in after["parts"][0]
    place = [image.id for image in drawn.images].index(box.image_id) + 1
    moved = [a for a in read_dataset(pool, "annotations").annotations_of(place) if a.extra.get("edited")]
    assert [(a.category_id, a.bbox_xywh) for a in moved] == [(5, left.bbox_xywh)]


def test_the_same_pool_is_kept_and_one_of_other_decisions_is_made_anew(draw, tmp_path):
    one, pool = draw("one", 1), tmp_path / "pool"
    merge_pool([one], pool)
    before, moment = files(pool), (pool / "manifest.json").stat().st_mtime_ns
    content = generated_content(pool)
    merge_pool([one], pool)
    assert (pool / "manifest.json").stat().st_mtime_ns == moment
    merge_pool([one], tmp_path / "again")
    assert files(tmp_path / "again") == before and generated_content(tmp_path / "again") == content
    reject(one, read_dataset(one, "annotations").images[-1].id)
    merge_pool([one], pool)
    assert len(files(pool)) == len(before) - 1
    next((pool / "images").iterdir()).unlink()
    merge_pool([one], pool)
    check_unchanged(pool, read_dataset(pool, "annotations").images)
    assert not list(tmp_path.glob(".tmp-*"))


def test_what_cannot_be_a_pool_is_refused_and_leaves_nothing(draw, tmp_path):
    one, pool = draw("one", 1), tmp_path / "pool"
    with pytest.raises(DatasetError, match="the same dataset as"):
        merge_pool([one, one], pool)
    with pytest.raises(DatasetError, match="is no pool"):
        merge_pool([one], tmp_path / "data")
    two = draw("two", 2)
    document = json.loads((two / "annotations.json").read_text())
    document["categories"][0]["name"] = "other"
    (two / "annotations.json").write_text(json.dumps(document))
    with pytest.raises(DatasetError, match="annotations.json is not the one"):
        merge_pool([one, two], pool)
    reject(one, *[image.id for image in read_dataset(one, "annotations").images])
    with pytest.raises(DatasetError, match="accepted no image"):
        merge_pool([one], pool)
    assert not pool.exists() and not list(tmp_path.glob(".tmp-*"))


def test_a_copy_is_the_same_pool_and_what_a_person_did_to_it_is_not_replaced(draw, tmp_path):
    one, two, out = draw("one", 1), draw("two", 2), tmp_path / "out"
    first, second = tmp_path / "first", tmp_path / "second"
    merge_pool([one], first)
    merge_pool([first, two], second)
    copy_pool(first, out)
    assert files(out) == files(first) and generated_content(out) == generated_content(first)
    (out / "CARD.md").write_text("of a version")
    copy_pool(first, out)
    assert (out / "CARD.md").exists()  # nothing was to do
    copy_pool(second, out)
    assert files(out) == files(second)
    dataset = read_dataset(out, "annotations")
    write_decisions(out, dataset, Decisions(frozenset(), {image.id: "reviewer" for image in dataset.images}))
    with pytest.raises(DatasetError, match="changed by hand .it holds decisions.json"):
        copy_pool(first, out)
    (out / "decisions.json").unlink()
    dataset.image_path(dataset.images[0]).unlink()
    with pytest.raises(DatasetError, match="changed by hand .its pictures or boxes"):
        copy_pool(first, out)
    with pytest.raises(DatasetError, match="is no pool"):
        copy_pool(first, one)
    check_unchanged(first, read_dataset(first, "annotations").images)
