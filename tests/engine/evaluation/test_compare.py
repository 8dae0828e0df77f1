import dataclasses
import json
import shutil

import pytest

from engine.config import load_settings
from engine.data.dataset import read_dataset, write_dataset
from engine.errors import ConfigError, DatasetError
from engine.evaluation.arms import accepted_only, plan_arms, with_source_labels, without_ignore
from engine.evaluation.compare import compare

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
    controls = ("source_labels", "equal_real", "quarter_share", "no_ignore")
    settings = dataclasses.replace(load_settings().compare, controls=controls)
    arms = {arm.name: arm for arm in plan_arms(real, drawn, settings)}
    assert list(arms) == ["real", "real+de", *controls]
    assert [s.share for s in arms["quarter_share"].sources] == [0.75, 0.25]
    assert arms["equal_real"].steps_factor == 2 and arms["real"].steps_factor == arms["real+de"].steps_factor == 1
    assert not any(a.iscrowd for a in without_ignore(drawn).annotations) and any(a.iscrowd for a in drawn.annotations)
    with pytest.raises(ConfigError, match="unknown nonsense"):
        plan_arms(real, drawn, dataclasses.replace(settings, controls=("nonsense",)))


def test_source_labels_are_the_sources_boxes_in_the_generated_frame(world_folder, generated):
    real, drawn = read_dataset(world_folder, "train"), read_dataset(generated, "annotations")
    halved = dataclasses.replace(drawn, images=tuple(dataclasses.replace(i, width=32, height=32) for i in drawn.images))
    relabelled = with_source_labels(real, halved)
    for image in relabelled.images:
        expected = [tuple(v / 2 for v in a.bbox_xywh) for a in real.annotations_of(image.id)]
        assert [a.bbox_xywh for a in relabelled.annotations if a.image_id == image.id] == expected


def test_rejected_images_take_no_part(generated):
    drawn = read_dataset(generated, "annotations")
    kept = accepted_only(drawn, {2, 3})
    assert {i.id for i in kept.images} == {2, 3} and {a.image_id for a in kept.annotations} <= {2, 3}


def test_a_comparison_leaves_results_and_report_and_goes_on_where_it_stopped(world_folder, generated, tmp_path):
    settings = load_settings(None, [*FAST, "ldm.device=cpu", "compare.bootstrap=50"])
    results = compare(world_folder, generated, tmp_path, settings, seeds=2)
    assert set(results["arms"]) == {"real", "real+de"} and len(results["arms"]["real"]["map"]) == 2
    assert results["delta"]["ci95"][0] <= results["delta"]["mean"] <= results["delta"]["ci95"][1]
    assert json.loads((tmp_path / "results.json").read_text())["seeds"] == [0, 1]
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


def test_nothing_accepted_or_other_classes_stop_it(world_folder, generated, tmp_path):
    settings = load_settings(None, FAST)
    drawn = read_dataset(generated, "annotations")
    shutil.copytree(generated, tmp_path / "other")
    renamed = [dataclasses.replace(c, name=c.name + "!") for c in drawn.categories]
    write_dataset(tmp_path / "other", "annotations", drawn.images, drawn.annotations, renamed)
    with pytest.raises(DatasetError, match="must be the same"):
        compare(world_folder, tmp_path / "other", tmp_path / "out", settings, seeds=2)
