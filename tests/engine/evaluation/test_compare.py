import dataclasses
import json
import shutil

import pytest

from engine.config import load_settings
from engine.curation.decisions import Decisions, write_decisions
from engine.data.dataset import read_dataset, write_dataset
from engine.errors import ConfigError, DatasetError
from engine.evaluation.arms import plan_arms
from engine.evaluation.coco_map import evaluate
from engine.evaluation.compare import compare
from engine.evaluation.controls import (
    mean_score,
    permuted,
    unlabelled,
    with_source_labels,
    without_ignore,
)
from engine.sections import CONTROLS

FAST = ["detector.steps=2", "detector.batch_size=4", "detector.width=32", "detector.convs=1", "detector.resolution=64"]


@pytest.fixture(scope="module")
def generated(tmp_path_factory, world_folder):
    """A stand-in for generated data: the validation scenes, half size, as if drawn from the training scenes."""
    folder = tmp_path_factory.mktemp("generated") / "de"
    shutil.copytree(world_folder / "images", folder / "images")
    val = read_dataset(world_folder, "val")
    images = [dataclasses.replace(i, extra={"de": {"source_image_id": i.id, "strength": 0.5}}) for i in val.images]
    boxes = [dataclasses.replace(a, iscrowd=int(a.id == 1), extra={"score": 0.6}) for a in val.annotations]
    write_dataset(folder, "annotations", images, boxes, val.categories)
    return folder


def test_arms_train_on_what_their_names_say(world_folder, generated):
    real, drawn = read_dataset(world_folder, "train"), read_dataset(generated, "annotations")
    settings = dataclasses.replace(load_settings().compare, controls=CONTROLS)
    arms = {arm.name: arm for arm in plan_arms(real, drawn, settings, {"other": drawn})}
    assert list(arms) == ["real", "real+de", "other", "other+de", *(name for name in CONTROLS if name != "arms+de")]
    assert [s.share for s in arms["other+de"].sources] == [0.5, 0.25, 0.25] and arms["other+de"].baseline == "other"
    assert [s.share for s in arms["quarter_share"].sources] == [0.75, 0.25]
    assert arms["equal_real"].steps_factor == 2 and arms["real"].steps_factor == arms["real+de"].steps_factor == 1
    assert arms["equal_real"].baseline == "real_longer" and arms["real_longer"].steps_factor == 2
    assert [len(s.dataset.annotations) for s in arms["unlabelled"].sources] == [len(real.annotations), 0]
    assert arms["strong_augmentation"].detector == {"augment": "strong"} == arms["strong_augmentation+de"].detector
    assert [len(arms[f"strong_augmentation{de}"].sources) for de in ("", "+de")] == [1, 2]
    assert [(s.first, s.last) for s in arms["generated_first"].sources] == [(0, 1), (0, 0.7)]
    assert [(s.first, s.last) for s in arms["pretrained"].sources] == [(0.7, 1), (0, 0.7)]
    assert arms["score_weighted"].sources[1].weights == mean_score(drawn)
    assert not any(a.iscrowd for a in without_ignore(drawn).annotations) and any(a.iscrowd for a in drawn.annotations)
    with pytest.raises(ConfigError, match="unknown nonsense"):
        plan_arms(real, drawn, dataclasses.replace(settings, controls=("nonsense",)))
    together = dataclasses.replace(settings, controls=("arms+de",))
    with pytest.raises(ConfigError, match="needs a dataset to put"):
        plan_arms(real, drawn, together)
    with pytest.raises(ConfigError, match=r"--arm a\+de=...: .* makes an arm of that name"):
        plan_arms(real, drawn, together, {"a": drawn, "a+de": drawn})


def test_source_labels_of_images_without_a_source_are_a_clear_mistake(world_folder):
    real = read_dataset(world_folder, "train")
    with pytest.raises(ConfigError, match="source_labels needs images that were drawn"):
        with_source_labels(real, read_dataset(world_folder, "val"))


def test_source_labels_are_the_sources_boxes_in_the_generated_frame(world_folder, generated):
    real, drawn = read_dataset(world_folder, "train"), read_dataset(generated, "annotations")
    halved = dataclasses.replace(drawn, images=tuple(dataclasses.replace(i, width=32, height=32) for i in drawn.images))
    relabelled = with_source_labels(real, halved)
    for image in relabelled.images:
        expected = [tuple(v / 2 for v in a.bbox_xywh) for a in real.annotations_of(image.id)]
        assert [a.bbox_xywh for a in relabelled.annotations if a.image_id == image.id] == expected


def test_pictures_drawn_from_words_have_no_source_whose_labels_they_could_take(world_folder, generated):
    real, drawn = read_dataset(world_folder, "train"), read_dataset(generated, "annotations")
    first, *rest = drawn.images
    from_words = dataclasses.replace(first, extra={"de": {**first.extra["de"], "mode": "text_to_image"}})
    relabelled = with_source_labels(real, dataclasses.replace(drawn, images=(from_words, *rest)))
    assert [image.id for image in relabelled.images] == [image.id for image in rest]


def test_permuted_images_all_have_the_boxes_of_another_one(generated):
    drawn = read_dataset(generated, "annotations")
    boxes = {i.id: [a.bbox_xywh for a in drawn.annotations_of(i.id)] for i in drawn.images}
    moved = {i.id: [a.bbox_xywh for a in permuted(drawn).annotations_of(i.id)] for i in drawn.images}
    assert sorted(moved.values()) == sorted(boxes.values())
    assert all(moved[image_id] != boxes[image_id] for image_id in boxes)
    assert permuted(drawn) == permuted(drawn) and unlabelled(drawn).images == drawn.images


def test_equal_real_brings_its_own_baseline_and_names_are_folders(world_folder, generated):
    real, drawn = read_dataset(world_folder, "train"), read_dataset(generated, "annotations")
    settings = dataclasses.replace(load_settings().compare, controls=("equal_real", "strong_augmentation+de"))
    arms = {arm.name: arm.baseline for arm in plan_arms(real, drawn, settings)}
    assert list(arms.items())[2:] == [
        ("real_longer", "real"),
        ("equal_real", "real_longer"),
        ("strong_augmentation", "real"),
        ("strong_augmentation+de", "strong_augmentation"),
    ]
    # train, generated and so on are names in the search for leaks, which an arm of that name would take the place of
    for name in ("real", "../out", "permuted", "", "train", "generated", "val", "test", "unlabelled"):
        with pytest.raises(ConfigError, match="--arm"):
            plan_arms(real, drawn, settings, {name: drawn})


def test_rejected_images_take_no_part(world_folder, generated, tmp_path):
    folder = shutil.copytree(generated, tmp_path / "de")
    drawn = read_dataset(folder, "annotations")
    rejected = {image.id: "duplicate: of another" for image in drawn.images[2:]}
    write_decisions(folder, drawn, Decisions(frozenset(i.id for i in drawn.images[:2]), rejected, {}))
    results = compare(world_folder, folder, tmp_path / "out", load_settings(None, [*FAST, "ldm.device=cpu"]), seeds=2)
    train = len(read_dataset(world_folder, "train").images)
    assert results["arms"]["real+de"]["train_images"] == train + 2
    sources = results["arms"]["real+de"]["trained_on"]
    assert [(s["dataset"], s["images"], s["share"]) for s in sources] == [
        (world_folder.name, train, 0.5),
        ("de", 2, 0.5),
    ]
    assert results["arms"]["real"]["detector"] == {} and len(results["arms"]["real"]["trained_on"]) == 1
    assert results["generated"]["rejected"] == {"duplicate": len(rejected)}


def test_a_comparison_leaves_results_and_report_and_goes_on_where_it_stopped(world_folder, generated, tmp_path):
    settings = load_settings(None, [*FAST, "ldm.device=cpu", "compare.bootstrap=50"])
    results = compare(world_folder, generated, tmp_path, settings, seeds=2, version_of=lambda found: min(found) + "-v1")
    pinned = results["trained_on"]
    assert pinned["real"]["content"]["train"] == read_dataset(world_folder, "train").digest()
    assert (pinned["real"]["version"], pinned["generated"]["version"]) == ("test-v1", "annotations-v1")
    assert "annotations-v1" in (tmp_path / "report.html").read_text()
    assert set(results["arms"]) == {"real", "real+de"} and len(results["arms"]["real"]["map"]) == 2
    assert results["delta"]["ci95"][0] <= results["delta"]["mean"] <= results["delta"]["ci95"][1]
    assert json.loads((tmp_path / "results.json").read_text())["seeds"] == [0, 1]
    by_score = results["delta_by_score"]
    assert by_score["map50"]["treatment"] == "real+de" and set(by_score["per_class"]) == {
        c.name for c in read_dataset(world_folder, "test").categories
    }
    assert "<html" in (tmp_path / "report.html").read_text()

    before = (tmp_path / "results.json").read_bytes()
    done = tmp_path / "arms" / "real" / "seed-0.json"
    stamp = done.stat().st_mtime_ns
    (tmp_path / "arms" / "real+de" / "seed-1.json").write_text("{")  # torn: trained again
    again = []
    compare(world_folder, generated, tmp_path, settings, seeds=2, on_progress=lambda *n: again.append(n))
    assert again == [(3, 4), (4, 4)] and done.stat().st_mtime_ns == stamp
    seconds = [json.loads(text)["arms"]["real"]["map"] for text in (before, (tmp_path / "results.json").read_bytes())]
    assert seconds[0] == seconds[1]


def test_validation_images_are_scored_apart_and_belong_to_a_training(world_folder, generated, tmp_path):
    settings = load_settings(None, [*FAST, "ldm.device=cpu", "compare.bootstrap=0"])
    real, out = shutil.copytree(world_folder, tmp_path / "real"), tmp_path / "out"

    def run() -> tuple[dict, list]:
        shown = []
        return compare(real, generated, out, settings, 2, lambda *n: shown.append(n)), shown

    (real / "val.json").rename(tmp_path / "val.json")
    alone, _ = run()
    assert "validation" not in alone["arms"]["real"] and "val" not in alone["data"]

    (tmp_path / "val.json").rename(real / "val.json")  # trainings without validation scores are simply done again
    results, shown = run()
    assert shown[0] == (0, 4)
    val, trained = read_dataset(real, "val"), json.loads((out / "arms" / "real" / "seed-0.json").read_text())
    assert {box["image_id"] for box in trained["validation"]} <= {image.id for image in val.images}
    scored = evaluate(val, trained["validation"])
    seen = results["arms"]["real"]["validation"]
    assert (seen["map"][0], seen["per_class"].keys()) == (scored.map, scored.per_class.keys())
    assert results["arms"]["real"]["map"] == alone["arms"]["real"]["map"]
    assert results["data"]["val"]["sha256"] == val.digest()

    write_dataset(real, "val", val.images, val.annotations[1:], val.categories)
    assert run()[1][0] == (0, 4) and run()[1] == [(4, 4)]


def test_further_arms_and_a_scaling_curve(world_folder, generated, tmp_path, caplog):
    sets = ["ldm.device=cpu", "compare.bootstrap=20", "compare.scaling=[0.2, 0.4, 50]"]
    settings = load_settings(None, [*FAST, *sets])
    results = compare(world_folder, generated, tmp_path, settings, seeds=2, further={"copy": generated})
    assert results["arm_order"] == ["real", "real+de", "copy", "x0.2", "x0.4"] and "50 times" in caplog.text
    assert results["against"]["real"]["mean"] == results["delta"]["mean"]
    # The same data, steps and seeds under another name: no difference at all.
    assert results["against"]["copy"]["per_seed"] == [0, 0]
    assert set(results["against"]) == {"real", "copy"}
    points = results["scaling"]["points"]
    train = len(read_dataset(world_folder, "train").images)
    accepted = results["data"]["accepted"]["images"]
    assert [p["images"] for p in points] == [0, round(0.2 * train), round(0.4 * train), accepted]
    assert points[-1]["map"] == results["arms"]["real+de"]["map"]
    assert results["arms"]["x0.2"]["train_images"] == train + points[1]["images"]
    assert "--arm copy=" in (tmp_path / "report.html").read_text()
    with pytest.raises(ConfigError, match="has an arm of that name"):
        compare(world_folder, generated, tmp_path, settings, seeds=2, further={"x0.2": generated})


def test_a_training_that_was_stopped_goes_on(world_folder, generated, tmp_path, monkeypatch):
    import engine.detection.fitting as fitting
    import engine.evaluation.trainings as trainings
    from engine.detection.training import fit

    settings = load_settings(None, [*FAST, "detector.steps=6", "detector.save_every=2", "ldm.device=cpu"])
    real, drawn, test = (
        read_dataset(folder, split)
        for folder, split in ((world_folder, "train"), (generated, "annotations"), (world_folder, "test"))
    )

    def job(out):
        return trainings.plan_jobs(plan_arms(real, drawn, settings.compare), [0], out, settings, test)[1]

    unbroken = trainings.train_one(job(tmp_path / "unbroken"), test, settings)

    class Stopped(Exception):
        pass

    def stop_behind_the_first_state(module, batches, *args):
        whole = batches.batch

        def batch(step, part=(0, 1)):
            if step == 3:
                raise Stopped
            return whole(step, part)

        batches.batch = batch
        return fit(module, batches, *args)

    monkeypatch.setattr(fitting, "fit", stop_behind_the_first_state)
    with pytest.raises(Stopped):
        trainings.train_one(job(tmp_path), test, settings)
    drawn_again = []

    def watch(module, batches, *args):
        whole = batches.batch
        batches.batch = lambda step, part=(0, 1): drawn_again.append(step) or whole(step, part)
        return fit(module, batches, *args)

    monkeypatch.setattr(fitting, "fit", watch)
    assert trainings.train_one(job(tmp_path), test, settings)["detections"] == unbroken["detections"]
    assert drawn_again == [2, 3, 4, 5]


def test_what_cannot_be_compared_is_said_before_anything_is_trained(world_folder, generated, tmp_path, monkeypatch):
    monkeypatch.setattr("engine.evaluation.compare.search_leaks", lambda *a: pytest.fail("it was begun"))
    settings = load_settings(None, FAST)
    with pytest.raises(ConfigError, match="at least 2 seeds per arm, got 1"):
        compare(world_folder, generated, tmp_path / "out", settings, seeds=1)
    for split, words in (("train", "nothing to learn from"), ("test", "nothing can be scored")):
        folder = shutil.copytree(world_folder, tmp_path / split)
        whole = read_dataset(folder, split)
        ignored = [dataclasses.replace(a, iscrowd=1) for a in whole.annotations]
        write_dataset(folder, split, whole.images, ignored, whole.categories)
        with pytest.raises(DatasetError, match=f"{split}.json holds no object: .*{words}"):
            compare(folder, generated, tmp_path / "out", settings, seeds=2)


def test_nothing_accepted_or_other_classes_stop_it(world_folder, generated, tmp_path):
    settings = load_settings(None, FAST)
    drawn = read_dataset(generated, "annotations")
    shutil.copytree(generated, tmp_path / "other")
    renamed = [dataclasses.replace(c, name=c.name + "!") for c in drawn.categories]
    write_dataset(tmp_path / "other", "annotations", drawn.images, drawn.annotations, renamed)
    with pytest.raises(DatasetError, match="must be the same"):
        compare(world_folder, tmp_path / "other", tmp_path / "out", settings, seeds=2)
