from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from engine.errors import DatasetError
from engine.report import gallery_from, write_report
from engine.report.failures import ChangedImage
from engine.report.in_short import in_short

VOID = {"meta", "img", "br", "hr", "link", "input", "wbr"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that every element is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words, self.open = [], [], "", []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        self.words += data

    def texts(self):
        return re.sub(r"\s+", " ", self.words)


def read(path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_holds_everything_itself(make_results, scene_folders, tmp_path):
    path = write_report(make_results(), tmp_path, gallery_from(*scene_folders, 8), commands=["de demo --out demo"])
    assert path == tmp_path / "report.html" and [p.name for p in tmp_path.iterdir()] == ["report.html"]
    page = read(path)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    sources = [value for _, name, value in page.attributes if name in ("src", "srcset", "xlink:href", "data")]
    assert len(sources) == 16 and all(value.startswith("data:image/jpeg;base64,") for value in sources)
    assert [value for tag, name, value in page.attributes if name == "http-equiv"] == ["Content-Security-Policy"]
    assert ("meta", "content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in page.attributes
    text = path.read_text(encoding="utf-8")
    assert "url(" not in text and "@import" not in text and "http://" not in text and "https://" not in text
    assert str(scene_folders[0].parent) not in text


def test_the_verdict_is_one_sentence_with_number_and_interval(make_results, tmp_path):
    results = make_results()
    words = read(write_report(results, tmp_path)).texts()
    low, high = (100 * value for value in results["delta"]["ci95"])
    assert results["delta"]["verdict"] == "helps"
    assert f"The generated data helps: +{100 * results['delta']['mean']:.1f} mAP" in words
    assert f"95 % interval +{low:.1f} to +{high:.1f}, from 3 trainings per arm and 300 test images" in words


@pytest.mark.parametrize(
    ("gain", "opening"),
    [(-0.05, "The generated data hurts: −"), (0.002, "We cannot tell whether the generated data helps")],
)
def test_other_verdicts(make_results, tmp_path, gain, opening):
    words = read(write_report(make_results(gain=gain), tmp_path)).texts()
    assert opening in words
    assert ("would settle" in words or "not settle" in words) == ("cannot" in opening)


def test_every_figure_is_in_the_page(make_results, tmp_path):
    results = make_results(names=("real", "real+de", "source_labels"))
    page = read(write_report(results, tmp_path, commands=["de compare --real data"]))
    words = page.texts()
    for name, arm in results["arms"].items():
        assert name in words and arm["notes"]["note"] in words
        for seed, value in zip(results["seeds"], arm["map"], strict=True):
            assert f"{name}, seed {seed}: {100 * value:.1f}" in words
        for values in arm["per_class"].values():
            assert " ".join(f"{100 * value:.1f}" for value in values) in words
    for reason in ("no box above the threshold", "OutOfMemoryError", "duplicate", "outside the image"):
        assert reason in words
    assert "de compare --real data" in words and "torch" in words and "fcos" in words
    assert "Its boxes on 97 real images" in words and "ScoremAP50.0AP5080.0" in words
    assert page.tags.count("polyline") == 9
    assert page.tags.count("svg") == 4


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7*7 }}"


def test_hostile_words_stay_words(make_results, all_parts, scene_folders, tmp_path):
    item = gallery_from(*scene_folders, 1)[0]
    item = dataclasses.replace(item, labels=[HOSTILE] * len(item.labels), caption=HOSTILE)
    results = make_results(classes=(HOSTILE, "b"), names=("real", HOSTILE + "2"))
    results["settings"] = {HOSTILE: HOSTILE, "list": [HOSTILE]}
    results["versions"] = {"torch": HOSTILE}
    results["generated"] |= {"dropped": {HOSTILE: 15}, "drawn_with": {"prompt": HOSTILE, "ldm": {"id": HOSTILE}}}
    results = all_parts(results)
    results["scaling"]["note"] = HOSTILE
    results["leakage"] = {HOSTILE: {HOSTILE: 1}}
    refused = dataclasses.replace(item, reason="rejected", used=False, refusal=HOSTILE)
    changed = ChangedImage(True, "data:image/jpeg;base64,", "data:image/jpeg;base64,", HOSTILE, 0, 3, (1, 2))
    page = read(write_report(results, tmp_path, [item, refused], [changed], commands=[HOSTILE], title=HOSTILE))
    assert "script" not in page.tags
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert all(value.startswith("data:image/jpeg") for _, name, value in page.attributes if name == "src")
    assert page.words.count("<script>alert(1)</script>") > 30
    assert "{{ 7*7 }}" in page.words


def test_equal_input_gives_equal_bytes(make_results, scene_folders, tmp_path):
    gallery = gallery_from(*scene_folders, 4)
    first = write_report(make_results(), tmp_path / "a", gallery).read_bytes()
    assert first == write_report(make_results(), tmp_path / "b", gallery).read_bytes()


def test_what_is_undefined_shows_as_such(make_results, tmp_path):
    results = make_results()
    for arm in results["arms"].values():
        arm["per_class"]["dragon"] = [None] * 3
        arm["loss_curve"] = [[]] * 3
    page = read(write_report(results, tmp_path))
    words = page.texts()
    assert "no such object in the test images" in words
    assert "None" not in words and "nan" not in words.lower().split()
    assert page.tags.count("svg") == 3  # no loss plot


def test_a_bare_comparison_makes_a_page(make_results, tmp_path):
    results = make_results(seeds=(5, 6))
    results.update(generated={}, adapter={}, data={}, settings={}, versions={})
    assert "95 % interval" in read(write_report(results, tmp_path)).texts()


def test_crowded_pictures_get_a_key_of_colours(make_results, scene_folders, tmp_path):
    item = gallery_from(*scene_folders, 1)[0]
    crowd = dataclasses.replace(item, boxes_xywh=[(1, 1, 5, 5)] * 20, labels=["red cell"] * 20, scores=[0.5] * 20)
    assert "red cell" in read(write_report(make_results(), tmp_path, [crowd])).texts()
    few = dataclasses.replace(item, boxes_xywh=[(1, 1, 5, 5)], labels=["red cell"], scores=[0.5])
    assert "red cell" not in read(write_report(make_results(), tmp_path, [few])).texts()


def test_eighty_classes_show_those_that_moved_most(make_results, tmp_path):
    results = make_results(classes=[f"class {n}" for n in range(80)])
    page = read(write_report(results, tmp_path))
    assert "68 more in the table" in page.texts()
    assert all(f"class {n}" in page.words for n in range(80))


def test_inconsistent_results_make_no_page(make_results, tmp_path):
    results = make_results()
    results["generated"]["kept"] = 1
    with pytest.raises(ValueError, match="add up"):
        write_report(results, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_broken_picture_is_named(make_results, scene_folders, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    item = dataclasses.replace(gallery_from(*scene_folders, 1)[0], generated=tmp_path / "broken.png")
    with pytest.raises(DatasetError, match="broken.png"):
        write_report(make_results(), tmp_path / "out", [item])


def test_every_link_leads_to_a_place_in_the_page(make_results, all_parts, scene_folders, tmp_path):
    page = read(write_report(all_parts(make_results()), tmp_path, gallery_from(*scene_folders, 4)))
    links = [value for tag, name, value in page.attributes if name == "href"]
    places = {"#" + value for _, name, value in page.attributes if name == "id"}
    assert len(links) == 9 and set(links) <= places


PARTS = {
    "precision_recall": "Precision and recall, mean over classes",
    "changes": "On 31 test images “real+de” finds more of the objects",
    "against": "“real+de” minus each other arm",
    "leakage": "near copies of test images",
    "scaling": "stops paying at about 2.5 times",
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_shows_where_its_data_are_and_not_where_not(make_results, all_parts, tmp_path, part):
    whole = all_parts(make_results(names=("real", "real+de", "quarter_share")))
    assert PARTS[part] in read(write_report(whole, tmp_path)).texts()
    del whole[part]
    words = read(write_report(whole, tmp_path)).texts()
    assert PARTS[part] not in words
    assert all(others in words for name, others in PARTS.items() if name != part)


def test_many_arms_keep_bars_and_curves_to_the_two_of_the_verdict(make_results, all_parts, tmp_path):
    names = ("real", "real+de", *(f"control number {n}" for n in range(8)))
    page = read(write_report(all_parts(make_results(names=names)), tmp_path))
    words = page.texts()
    assert "Drawn are the two arms of the verdict" in words
    assert all(words.count(f"control number {n}") >= 4 for n in range(8))  # both plots, the table, the classes
    few = read(write_report(all_parts(make_results()), tmp_path)).texts()
    assert "Drawn are the two arms of the verdict" not in few


def test_one_class_has_no_curve_of_its_own(make_results, all_parts, tmp_path):
    words = read(write_report(all_parts(make_results(classes=("cell",))), tmp_path)).texts()
    assert "Precision and recall" in words and "by class" not in words.replace("Average precision by class", "")


def test_rejected_pictures_say_why(make_results, scene_folders, tmp_path):
    item = dataclasses.replace(
        gallery_from(*scene_folders, 1)[0], reason="rejected", used=False, refusal="duplicate: repeats <b>3</b>"
    )
    page = read(write_report(make_results(), tmp_path, [item]))
    assert "rejected: duplicate: repeats <b>3</b>" in page.texts()


def test_changed_test_images_are_shown_both_ways(make_results, all_parts, tmp_path):
    uri = "data:image/jpeg;base64,"
    changed = [ChangedImage(better, uri, uri, f"{better}.png", 2, 5, (1, 4)) for better in (True, False)]
    words = read(write_report(all_parts(make_results()), tmp_path, (), changed)).texts()
    assert words.index("“real+de” finds more") < words.index("True.png") < words.index("“real+de” finds fewer")
    assert "real: 1 of 5" in words and "real+de: 4 of 5" in words and "False.png · seed 2" in words


def test_intervals_of_scores_and_classes_where_there_are_any(make_results, tmp_path):
    """A class without an interval keeps its scores; results of earlier days say that there is none."""
    results = make_results()
    assert "without intervals" in read(write_report(results, tmp_path)).texts()
    names = list(results["arms"]["real"]["per_class"])
    one = results["delta"] | {"mean": 0.021, "ci95": [0.004, 0.038], "verdict": "helps"}
    results["delta_by_score"] = {"map50": one, "map75": one, "per_class": dict.fromkeys(names, one) | {names[0]: None}}
    page = read(write_report(results, tmp_path)).texts()
    assert f"AP of {names[1]}: +2.1" in page and f"AP of {names[0]}:" not in page
    assert "without intervals" not in page and "without an interval" not in page
    assert page.count("+2.1 (+0.4 to +3.8)") == 2 + len(names) - 1
    assert f"Of {len(names) - 1} intervals of classes {len(names) - 1} exclude zero" in page


def test_a_training_that_did_not_learn_is_named_first(make_results):
    results = make_results()
    arm = results["arm_order"][-1]
    assert "Did not learn" not in in_short(results, [], None)[0]
    results["arms"][arm]["map"][1] = 0.0
    assert in_short(results, [], None)[0].startswith(
        f"Did not learn: “{arm}” with seed {results['seeds'][1]}, less than 20%"
    )
