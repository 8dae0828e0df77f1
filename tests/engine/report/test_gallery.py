from __future__ import annotations

import shutil

from engine.curation.decisions import Decisions, write_decisions
from engine.data.dataset import read_dataset
from engine.report.gallery import gallery_from, pair_uris
from engine.report.pictures import label_colours


def mean(scores):
    return sum(scores) / len(scores)


def test_an_even_spread_and_the_least_sure(scene_folders):
    generated, real = scene_folders
    gallery = gallery_from(generated, real, 12)
    spread = [item for item in gallery if item.reason == "spread"]
    doubtful = [item for item in gallery if item.reason == "doubtful"]
    assert (len(spread), len(doubtful)) == (9, 3)
    strengths = [item.strength for item in spread]
    assert strengths == sorted(strengths) and strengths[0] < 0.35 and strengths[-1] > 0.65
    assert max(b - a for a, b in zip(strengths, strengths[1:], strict=False)) < 0.2
    assert max(mean(item.scores) for item in doubtful) <= min(mean(item.scores) for item in spread)
    assert len({item.generated for item in gallery}) == 12
    assert gallery == gallery_from(generated, real, 12)


def test_a_pair_belongs_together(scene_folders):
    generated, real = scene_folders
    data = {f"{image.id}.png": image for image in read_dataset(generated, "annotations").images}
    for item in gallery_from(generated, real, 24):
        de = data[item.generated.name].extra["de"]
        assert item.source == real / "images" / f"{de['source_image_id']}.png"
        assert (item.strength, item.caption) == (de["strength"], de["prompt"])
        assert len(item.boxes_xywh) == len(item.labels) == len(item.scores) > 0
        assert len(item.ignored_xywh) == (de["item"] % 3 == 0)


def test_more_than_there_are_gives_all(scene_folders):
    assert len(gallery_from(*scene_folders, 100)) == 24
    assert gallery_from(*scene_folders, 0) == []


def test_without_the_real_folder_there_is_no_source(scene_folders):
    item = gallery_from(scene_folders[0], None, 1)[0]
    assert item.source is None
    source, generated = pair_uris(item, label_colours(item.labels))
    assert source is None and generated.startswith("data:image/jpeg;base64,")


def test_what_review_rejected_is_no_example_of_the_training_data(scene_folders, tmp_path):
    folder = shutil.copytree(scene_folders[0], tmp_path / "generated")
    dataset = read_dataset(folder, "annotations")
    accepted = frozenset(range(1, 13))
    write_decisions(folder, dataset, Decisions(accepted, {n: "dull" for n in range(13, 25)}))
    gallery = gallery_from(folder, scene_folders[1], 24)
    for item in gallery:
        assert item.used == (int(item.generated.stem) in accepted)
        assert item.used or item.reason == "doubtful"
    assert not all(item.used for item in gallery)
