"""Drawing splits: by content, exact in size, duplicates together."""

import pytest
from tiny_data import make_picture

from engine.data.dataset import Annotation, Category, ImageRecord, read_dataset, splits_of, write_dataset
from engine.data.splitting import split_dataset
from engine.errors import DatasetError


def _folder(folder, seeds):
    """A picture for each seed: equal seeds are equal files."""
    images, annotations = [], []
    for number, seed in enumerate(seeds, start=1):
        make_picture(folder / "images" / f"{number:03}.png", size=(8, 8), seed=seed)
        images.append(ImageRecord(number, f"{number:03}.png", 8, 8))
        annotations.append(Annotation(number, number, 1, (0.0, 0.0, 4.0, 4.0), 16.0, 0))
    write_dataset(folder, "train", images, annotations, [Category(1, "cell")])
    return folder


def _contents(folder):
    return {
        split: {read.image_path(i).read_bytes() for i in read.images}
        for split in splits_of(folder)
        for read in [read_dataset(folder, split)]
    }


def test_shares_are_exact_and_nothing_is_lost(tmp_path):
    folder = _folder(tmp_path, range(50))
    assert split_dataset(folder, val=0.2, test=0.1, seed=3) == {"test": 5, "val": 10, "train": 35}
    datasets = [read_dataset(folder, split) for split in splits_of(folder)]
    assert sorted(i.id for d in datasets for i in d.images) == list(range(1, 51))
    assert sorted(a.id for d in datasets for a in d.annotations) == list(range(1, 51))
    assert all({a.image_id for a in d.annotations} == {i.id for i in d.images} for d in datasets)


def test_names_and_order_do_not_matter_the_seed_does(tmp_path):
    orders = {"1": range(30), "2": range(29, -1, -1), "3": range(30)}
    one, two, three = (_folder(tmp_path / name, seeds) for name, seeds in orders.items())
    for folder, seed in ((one, 0), (two, 0), (three, 1)):
        split_dataset(folder, val=0.3, test=0.2, seed=seed)
    assert _contents(one) == _contents(two) != _contents(three)


def test_identical_pictures_stay_together(tmp_path):
    folder = _folder(tmp_path, [n // 4 for n in range(60)])
    split_dataset(folder, val=0.3, test=0.3)
    contents = _contents(folder)
    assert not contents["train"] & contents["val"] | contents["train"] & contents["test"]
    assert not contents["val"] & contents["test"]


@pytest.mark.parametrize("shares", [{"val": 1.0}, {"val": 0.5, "test": 0.5}, {"val": -0.1}, {"test": float("nan")}])
def test_shares_out_of_range(tmp_path, shares):
    with pytest.raises(DatasetError, match="below 1"):
        split_dataset(_folder(tmp_path, range(4)), **shares)


def test_a_split_that_exists_is_not_drawn_again(tmp_path):
    folder = _folder(tmp_path, range(10))
    split_dataset(folder, val=0.2)
    before = {p: p.read_bytes() for p in folder.glob("*.json")}
    with pytest.raises(DatasetError, match="own val"):
        split_dataset(folder, val=0.2)
    assert before == {p: p.read_bytes() for p in folder.glob("*.json")}
    split_dataset(folder, test=0.25)
    assert splits_of(folder) == ["train", "val", "test"]


def test_too_few_pictures(tmp_path):
    folder = _folder(tmp_path, [5, 5, 5])
    with pytest.raises(DatasetError, match="too few"):
        split_dataset(folder, val=0.3)
    assert splits_of(folder) == ["train"]
