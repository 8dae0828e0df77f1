"""What a user may wish of a plan: more of some classes, variants, styles, images from words alone."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from conftest import make_settings, write_source
from PIL import Image

from engine.config import load_settings
from engine.curation.requests import Request, add_requests
from engine.data.dataset import read_dataset, subset, write_dataset
from engine.data.records import Annotation, Category, ImageRecord
from engine.errors import ConfigError, DatasetError
from engine.generation.plan import make_plan
from engine.generation.plan_rows import arrange
from engine.generation.wishes import MOST_IMAGES

IDENTITY = {"ldm": {"id": "stub", "multiple": 16}, "adapter": {"sha256": "a"}}
NAMES = ("bus", "cat=tom", "owl")


def write_classes(folder: Path, held=("bus",) * 8 + ("cat=tom",) * 4 + ("owl",) * 2 + ("",)) -> Path:
    """One small picture an entry, with two objects of each class named in it."""
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(folder / "images" / "1.png")
    boxes = []
    for i, names in enumerate(held, start=1):
        if i > 1:
            (folder / "images" / f"{i}.png").hardlink_to(folder / "images" / "1.png")
        for name in names.split() * 2:
            boxes.append(Annotation(len(boxes) + 1, i, 1 + NAMES.index(name), (1.0, 1.0, 9.0, 9.0), 81.0, 0, {}))
    images = [ImageRecord(i, f"{i}.png", 32, 32, {}) for i in range(1, len(held) + 1)]
    write_dataset(folder, "train", images, boxes, [Category(1 + i, name) for i, name in enumerate(NAMES)])
    return folder


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    return read_dataset(write_classes(tmp_path_factory.mktemp("classes") / "data"), "train")


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    return read_dataset(write_source(tmp_path_factory.mktemp("five") / "data"), "train")


def plan_of(dataset, images=150, seed=3, **generation):
    return make_plan(dataset, images, seed, make_settings(**generation), IDENTITY)


def objects(dataset, plan) -> dict[str, int]:
    """Objects of each class on the sources of all items."""
    names = {category.id: category.name for category in dataset.categories}
    found = Counter()
    for item in plan.items:
        found.update(names[box.category_id] for box in dataset.annotations_of(item.source_image_id))
    return dict(found)


def write_results(path: Path, per_class: dict) -> Path:
    """A comparison's results.json with the parts that are read and checked: `per_class` on validation images, while
    every class is alike on test images."""
    scores = {name: [0.5, 0.5] for name in ("map", "map50", "map75", "map_small", "map_medium", "map_large", "ar100")}
    arm = scores | {"per_class": dict.fromkeys(per_class, [0.5, 0.5]), "loss_curve": [[], []], "seconds": [1.0, 1.0]}
    arm["validation"] = scores | {"per_class": per_class}
    delta = {"mean": 0.0, "ci95": [0, 0], "verdict": "cannot tell", "baseline": "real", "treatment": "real+de"}
    content = {"arms": {"real": arm, "real+de": arm}, "baseline": "real", "seeds": [0, 1], "delta": delta}
    content |= {
        "deltas": {"real+de": delta},
        "settings": {},
        "versions": {},
        "data": {},
        "generated": {},
        "adapter": {},
    }
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("images", [1, 7, 100, 1000])
def test_shares_follow_weights_to_about_one_use(images):
    rng = np.random.default_rng(images)
    for size in (1, 2, 5, 40):
        weights = rng.uniform(0.2, 5, size)
        source, variant = arrange(weights, images)
        uses = np.bincount(source, minlength=size)
        assert uses.sum() == images == len(variant)
        assert np.abs(uses - images * weights / weights.sum()).max() < 1.5
        for place in range(size):
            assert variant[source == place].tolist() == list(range(uses[place]))
        longer = arrange(weights, images + 13)
        assert (longer[0][:images] == source).all() and (longer[1][:images] == variant).all()


def test_equal_weights_serve_in_turns_and_a_source_of_weight_0_never():
    source, variant = arrange(np.full(5, 0.7), 13)
    assert source.tolist() == [k % 5 for k in range(13)] and variant.tolist() == [k // 5 for k in range(13)]
    assert set(arrange(np.array([1, 0, 2.0]), 30)[0].tolist()) == {0, 2}


def test_a_class_of_weight_3_gets_three_times_the_objects(classes):
    assert objects(classes, plan_of(classes)) == {"bus": 160, "cat=tom": 80, "owl": 40}
    found = objects(classes, plan_of(classes, images=190, class_weights=("owl=3",)))
    assert found == {"bus": 160, "cat=tom": 80, "owl": 120}
    halved = objects(classes, plan_of(classes, images=110, class_weights=("bus=0.5",)))
    assert halved == {"bus": 80, "cat=tom": 80, "owl": 40}
    assert "cat=tom" not in objects(classes, plan_of(classes, class_weights=("cat=tom=0",)))


def test_the_heaviest_class_of_an_image_decides(tmp_path):
    shared = read_dataset(write_classes(tmp_path / "data", ("bus owl", "bus", "owl", "")), "train")
    uses = Counter(item.source_image_id for item in plan_of(shared, 90, class_weights=("owl=4",)).items)
    assert uses == {1: 36, 2: 9, 3: 36, 4: 9}


def test_a_size_of_weight_3_gets_three_times_the_images(tmp_path):
    """By COCO's areas, times the weight of the class; a plan without weights of sizes is what it was without them."""
    sides = {1: 31.0, 2: 32.0, 3: 96.0, 4: 97.0}
    (tmp_path / "images").mkdir()
    for i in sides:
        Image.new("RGB", (100, 100)).save(tmp_path / "images" / f"{i}.png")
    images = [ImageRecord(i, f"{i}.png", 100, 100, {}) for i in sides]
    boxes = [Annotation(i, i, 2 - i % 2, (0.0, 0.0, s, s), s * s, 0, {}) for i, s in sides.items()]
    write_dataset(tmp_path, "train", images, boxes, [Category(1, "owl"), Category(2, "bus")])
    sized = read_dataset(tmp_path, "train")

    def uses(images: int, **generation) -> dict:
        return dict(Counter(i.source_image_id for i in plan_of(sized, images, **generation).items))

    assert uses(60, size_weights=("small=3",)) == {1: 30, 2: 10, 3: 10, 4: 10}
    assert uses(60, size_weights=("medium=2",)) == {1: 10, 2: 20, 3: 20, 4: 10}
    both = uses(90, size_weights=("large=3", "small=0"), class_weights=("bus=2",))
    assert both == {2: 20, 3: 10, 4: 60}, "image 4 is large and a bus"
    plain = plan_of(sized)
    assert "size_weights" not in plain.spec["settings"]["generation"]
    assert plan_of(sized, size_weights=("small=1",)).digest == plain.digest


def test_weak_sizes_of_a_detector_weigh_more(classes, tmp_path):
    path = write_results(tmp_path / "r.json", {"bus": [0.6, 0.6], "cat=tom": [0.6, 0.6], "owl": [0.6, 0.6]})
    content = json.loads(path.read_text())
    content["arms"]["real"]["validation"] |= {
        "map_small": [0.1, 0.1],
        "map_medium": [0.4, None],
        "map_large": [0.5, 0.7],
    }
    path.write_text(json.dumps(content))
    plan = plan_of(classes, weak_sizes=str(path), size_weights=("medium=2",))
    assert plan.spec["settings"]["generation"]["size_weights"] == ["small=3.0", "medium=3.0"]
    assert plan.digest == plan_of(classes, size_weights=("small=3", "medium=3")).digest


def test_rarity_evens_out_and_is_bounded(classes, tmp_path):
    assert plan_of(classes, balance="rarity").spec["settings"]["generation"]["class_weights"] == [
        "cat=tom=1.4142",
        "owl=2.0",
    ]
    lonely = read_dataset(write_classes(tmp_path / "data", ("bus",) * 400 + ("owl",)), "train")
    assert plan_of(lonely, balance="rarity").spec["settings"]["generation"]["class_weights"] == ["owl=10.0"]


def test_weak_classes_of_a_detector_weigh_more(classes, tmp_path):
    path = write_results(tmp_path / "r.json", {"bus": [0.6, 0.8], "cat=tom": [0.35, None], "owl": [0.0, 0.0]})
    plan = plan_of(classes, weak_classes=str(path), class_weights=("bus=0.5",))
    assert plan.spec["settings"]["generation"]["class_weights"] == ["bus=0.5", "cat=tom=2.0", "owl=10.0"]
    assert "r.json" not in json.dumps(plan.spec)
    by_hand = plan_of(classes, class_weights=("owl=10", "cat=tom=2", "bus=0.5"))
    assert by_hand.digest == plan.digest != plan_of(classes).digest
    undefined = write_results(tmp_path / "u.json", {"bus": [None, None], "cat=tom": [0.0, 0.0], "owl": [None, None]})
    assert plan_of(classes, weak_classes=str(undefined)).digest == plan_of(classes).digest


def test_test_scores_never_decide_what_is_drawn(classes, tmp_path):
    """Results without validation scores are refused, and with them no test score changes the plan."""
    path = write_results(tmp_path / "r.json", {"bus": [0.6, 0.6], "cat=tom": [0.3, 0.3], "owl": [0.6, 0.6]})
    wishes = {"weak_classes": str(path), "weak_sizes": str(path)}
    plan = plan_of(classes, **wishes)
    content = json.loads(path.read_text())
    real = content["arms"]["real"]
    real |= {"map_small": [0.0, 0.1], "per_class": {"bus": [0.0, 0.1], "cat=tom": [0.9, 0.9], "owl": [0.4, 0.4]}}
    path.write_text(json.dumps(content))
    assert plan_of(classes, **wishes).digest == plan.digest
    del real["validation"]
    path.write_text(json.dumps(content))
    for name in wishes:
        with pytest.raises(DatasetError, match=r"r\.json holds no validation scores.* de import --val"):
            plan_of(classes, **{name: str(path)})


def test_results_of_earlier_days_are_refused_in_words(classes):
    results = Path(__file__).parents[3] / "docs" / "results" / "bccd.json"
    with pytest.raises(DatasetError, match="run the comparison again"):
        plan_of(classes, weak_classes=str(results))


def test_results_that_do_not_fit_are_refused(classes, tmp_path):
    other = write_results(tmp_path / "other.json", {"bus": [0.5, 0.5]})
    with pytest.raises(DatasetError, match=r"other\.json measures the classes \['bus'\], the dataset has"):
        plan_of(classes, weak_classes=str(other))
    with pytest.raises(DatasetError, match=r"nowhere\.json is no usable results file"):
        plan_of(classes, weak_classes=str(tmp_path / "nowhere.json"))


@pytest.mark.parametrize("text", ["owl", "=3", "owl=", "owl=-1", "owl=nan", "owl=inf", "owl=much"])
def test_words_that_are_no_weight_are_refused_with_the_settings(text):
    with pytest.raises(ConfigError, match="write CLASS=WEIGHT"):
        load_settings(None, [f"generation.class_weights=['{text}']"])


def test_an_unknown_class_is_refused_with_the_list(classes):
    with pytest.raises(ConfigError, match="no class 'dog'. Its classes: bus, cat=tom, owl."):
        plan_of(classes, class_weights=("dog=2",))
    with pytest.raises(ConfigError, match="leave no image"):
        plan_of(subset(classes, [1, 2]), class_weights=("bus=0",))
    with pytest.raises(ConfigError, match="too large"):
        plan_of(classes, class_weights=("bus=1e308", "owl=1e308"))


def test_a_plan_can_be_made_again_from_what_it_records(classes):
    first = plan_of(classes, images=None, variants_per_image=4, balance="rarity", styles=("a", "b"), text_to_image=0.3)
    recorded = first.spec["settings"]["generation"]
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in recorded.items()}
    assert plan_of(classes, images=first.images, **settings).digest == first.digest


def test_variants_of_a_source_follow_each_other(five):
    plan = plan_of(five, images=None, variants_per_image=3)
    ids = [item.source_image_id for item in plan.items]
    assert plan.images == 15 and all(len(set(ids[k : k + 3])) == 1 for k in range(0, 15, 3)) and len(set(ids)) == 5
    in_turns = plan_of(five, images=15)
    assert {(i.source_image_id, i.seed, i.strength) for i in plan.items} == {
        (i.source_image_id, i.seed, i.strength) for i in in_turns.items
    }
    fewer = plan_of(five, images=7, variants_per_image=3)
    assert [(i.source_image_id, i.seed) for i in fewer.items] == [(i.source_image_id, i.seed) for i in plan.items[:7]]
    assert len(fewer.sources) == 3


def test_the_number_of_images_must_be_said_and_possible(five):
    with pytest.raises(ConfigError, match="How many images"):
        plan_of(five, images=None)
    with pytest.raises(ConfigError, match=r"16 images are more than generation.variants_per_image=3 of 5 sources \(15"):
        plan_of(five, images=16, variants_per_image=3)
    with pytest.raises(ConfigError, match="more than one run plans"):
        plan_of(five, images=MOST_IMAGES + 1)


def test_styles_are_dealt_out_evenly_over_items_and_sources(five):
    styles = ("at night", 'in "snow"; touch PWNED\n../${x}', "by day")
    plan = plan_of(five, images=30, styles=styles, prompt="template", style="sharp", negative_prompt="blur")
    by_source = defaultdict(list)
    for item in plan.items:
        style = next(style for style in styles if item.prompt.endswith(f", sharp, {style}"))
        by_source[item.source_image_id].append(style)
        assert item.prompt.startswith("A photo") and item.negative_prompt == "blur"
    assert all(Counter(dealt) == dict.fromkeys(styles, 2) for dealt in by_source.values())
    assert {item.prompt for item in plan_of(five, images=5, styles=("x",), prompt="none").items} == {"x"}


@pytest.mark.parametrize(("share", "number"), [(0.0, 0), (0.1, 10), (0.125, 13), (0.5, 50), (1.0, 100)])
def test_the_share_from_words_alone_is_exact_and_changes_nothing_else(five, share, number):
    plain, plan = plan_of(five, images=100), plan_of(five, images=100, text_to_image=share)
    drawn = [item for item in plan.items if item.mode == "text_to_image"]
    assert len(drawn) == number and all(item.strength == 1.0 for item in drawn)
    for before, after in zip(plain.items, plan.items, strict=True):
        same = {"mode", "strength"} if after.mode == "text_to_image" else set()
        assert all(vars(before)[name] == vars(after)[name] for name in vars(before) if name not in same)
    if number == 50:  # from every source, and of what is left no strength is favoured
        assert len({item.source_image_id for item in drawn}) == 5
        left = [item.strength for item in plan.items if item.mode == "img2img"]
        assert 0.55 < sum(left) / 50 < 0.65


def requests_of(folder: Path, *wishes: tuple[int, int, str]) -> str:
    """A requests.jsonl of (image id, source id, wish)."""
    folder.mkdir()
    return str(add_requests(folder, [Request(i, source, ("bus",), 0.5, wish) for i, source, wish in wishes]))


def test_sources_asked_for_more_serve_three_times_and_less_a_third(five, tmp_path):
    path = requests_of(tmp_path / "a", (11, 2, "more"), (12, 4, "less"))
    plain, plan = plan_of(five, 95), plan_of(five, 95, requests=path)
    uses = Counter(item.source_image_id for item in plan.items)
    assert uses == {1: 15, 2: 45, 3: 15, 4: 5, 5: 15}
    assert set(Counter(item.source_image_id for item in plain.items).values()) == {19}
    variants = plan_of(five, None, variants_per_image=19, requests=path)
    assert Counter(item.source_image_id for item in variants.items) == uses


def test_requests_multiply_with_the_weights_of_classes(classes, tmp_path):
    path = requests_of(tmp_path / "a", (1, 13, "more"), (2, 9, "less"))  # an owl, and a cat
    uses = Counter(i.source_image_id for i in plan_of(classes, 700, class_weights=("owl=2",), requests=path).items)
    assert uses[13] / uses[14] == pytest.approx(3, rel=0.05) and uses[14] / uses[1] == pytest.approx(2, rel=0.05)
    assert uses[9] / uses[10] == pytest.approx(1 / 3, rel=0.08)


def test_what_requests_mean_is_in_the_digest_and_not_how_they_are_written(five, tmp_path):
    path = requests_of(tmp_path / "a", (11, 2, "more"))
    plan = plan_of(five, requests=path)
    same = requests_of(tmp_path / "b", (11, 2, "less"), (12, 2, "more"), (11, 2, "more"))
    assert plan.digest == plan_of(five, requests=same).digest != plan_of(five).digest
    assert plan.digest != plan_of(five, requests=requests_of(tmp_path / "c", (11, 2, "less"))).digest
    assert "requests.jsonl" not in json.dumps(plan.spec) and len(plan.spec["settings"]["generation"]["requests"]) > 10
    balanced = requests_of(tmp_path / "d", (11, 2, "less"), (12, 2, "more"))
    assert plan_of(five, requests=balanced).digest == plan_of(five).digest
    assert "requests" not in plan_of(five).spec["settings"]["generation"], "runs of earlier days go on"


def test_requests_that_do_not_fit_are_refused(five, tmp_path):
    with pytest.raises(DatasetError, match="asks about 1 source images that .* does not have, the first: 77"):
        plan_of(five, requests=requests_of(tmp_path / "a", (11, 2, "more"), (12, 77, "less")))
    with pytest.raises(DatasetError, match="There is no file .*nowhere.jsonl"):
        plan_of(five, requests=str(tmp_path / "nowhere.jsonl"))


def test_words_alone_need_words():
    with pytest.raises(ConfigError, match="text_to_image draws from words"):
        load_settings(None, ["generation.text_to_image=0.5", "generation.prompt=none"])
    load_settings(None, ["generation.text_to_image=0.5", "generation.prompt=none", "generation.styles=[snow]"])
