from __future__ import annotations

import shutil

from engine.curation.decisions import Decisions, write_decisions
from engine.data.dataset import ImageRecord, read_dataset
from engine.report.choice import spread_over_ratios
from engine.report.gallery import gallery_from, pair_uris
from engine.report.pictures import label_colours


def mean(scores):
    return sum(scores) / len(scores)


def by_reason(gallery):
    return {
        reason: [i for i in gallery if i.reason == reason] for reason in ("spread", "worst", "doubtful", "rejected")
    }


def test_an_even_spread_the_worst_and_the_doubtful(scene_folders):
    generated, real = scene_folders
    gallery = gallery_from(generated, real, 18)
    groups = by_reason(gallery)
    assert {reason: len(items) for reason, items in groups.items()} == {
        "spread": 12, "worst": 3, "doubtful": 3, "rejected": 0,
    }  # fmt: skip
    strengths = [item.strength for item in groups["spread"]]
    assert strengths == sorted(strengths) and strengths[0] < 0.3 and strengths[-1] > 0.7
    ranges = list(dict.fromkeys(item.group for item in groups["spread"]))
    assert len(ranges) == 4
    for words in ranges:
        low, high = (float(word) for word in words.split(" to "))
        inside = [item.strength for item in groups["spread"] if item.group == words]
        assert len(inside) == 3 and all(low - 0.005 <= strength <= high + 0.005 for strength in inside)
    others = [item for item in gallery if item.reason != "worst"]
    assert max(mean(item.scores) for item in groups["worst"]) <= min(mean(item.scores) for item in others)
    assert all(item.ignored_xywh for item in groups["doubtful"])
    assert len({item.generated for item in gallery}) == 18
    assert gallery == gallery_from(generated, real, 18)


def test_one_encode_ratio_is_one_group():
    images = [ImageRecord(n, f"{n}.png", 8, 8, {"de": {"strength": 0.5}}) for n in range(9)]
    assert spread_over_ratios(images, 3) == [("0.50", images[k]) for k in (1, 4, 7)]
    assert spread_over_ratios([], 3) == []


def test_a_range_with_few_images_leaves_its_places_to_others():
    ratios = [0.1, *[0.88 + n / 1000 for n in range(9)]]
    images = [ImageRecord(n, f"{n}.png", 8, 8, {"de": {"strength": ratio}}) for n, ratio in enumerate(ratios)]
    picked = spread_over_ratios(images, 6)
    assert len(picked) == 6 and picked[0][1] is images[0] and len({image.id for _, image in picked}) == 6


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


def test_what_review_rejected_is_shown_as_such_with_every_reason(scene_folders, tmp_path):
    folder = shutil.copytree(scene_folders[0], tmp_path / "generated")
    dataset = read_dataset(folder, "annotations")
    accepted = frozenset(range(1, 13))
    reasons = {n: "dull: 0.1" for n in range(13, 22)} | {22: "duplicate: repeats 3", 23: "duplicate: repeats 4"}
    write_decisions(folder, dataset, Decisions(accepted, reasons))
    groups = by_reason(gallery_from(folder, scene_folders[1], 18))
    for reason, items in groups.items():
        for item in items:
            assert item.used == (int(item.generated.stem) in accepted) == (reason != "rejected")
    assert sorted(item.refusal for item in groups["rejected"]) == ["dull: 0.1", "duplicate: repeats 3", "not decided"]
