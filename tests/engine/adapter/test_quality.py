"""The label-quality report: figures with known answers, and the whole of it on a tiny model."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engine.adapter.adapter import CARD, WEIGHTS, load_adapter, save_adapter
from engine.adapter.agreement import RATIOS, measure_ratios, real_labels
from engine.adapter.quality import SCORES, curve, measure_quality, record_quality, reliability
from engine.adapter.train import train_adapter
from engine.config import digest, load_settings
from engine.data.dataset import read_dataset
from engine.errors import DatasetError, ModelError
from engine.evaluation.coco_map import Matched
from engine.generation.draw import Drawn, load_drawer
from engine.generation.labels import LabelRules
from engine.ldm.diffusion import load_ldm
from engine.report.quality_page import report_quality

SETTINGS = load_settings(
    None,
    [
        "adapter.steps=3",
        "adapter.batch_size=2",
        "adapter.width=32",
        "adapter.convs=1",
        "ldm.resolution=64",
        "ldm.device=cpu",
        "generation.steps=4",
        "generation.guidance_min=1",
        "generation.guidance_max=1",
        "generation.ignore_threshold=0.1",
    ],
)


def with_generation(**values):
    return dataclasses.replace(SETTINGS, generation=dataclasses.replace(SETTINGS.generation, **values))


@pytest.fixture(scope="module")
def adapter_folder(tmp_path_factory, world_folder, ldm_folder):
    out = tmp_path_factory.mktemp("adapter")
    train_adapter(world_folder, ldm_folder, out, SETTINGS)
    return out


@pytest.fixture
def copy(adapter_folder, tmp_path) -> Path:
    return shutil.copytree(adapter_folder, tmp_path / "adapter")


def found(scores, hits, objects) -> Matched:
    return Matched(np.array(scores, dtype=float), np.array(hits, dtype=bool), np.arange(len(scores)), objects)


def test_calibration_error_is_the_mean_gap_between_score_and_precision():
    result = reliability(found([0.95, 0.95, 0.45, 0.45], [1, 1, 1, 0], 5))
    full = {(b["low"], b["boxes"], round(b["score"], 6), b["precision"]) for b in result["bins"] if b["boxes"]}
    assert full == {(0.9, 2, 0.95, 1.0), (0.4, 2, 0.45, 0.5)}
    assert result["calibration_error"] == pytest.approx(0.05)
    assert reliability(found([1.0, 0.0], [1, 0], 1))["calibration_error"] == 0.0


def test_without_boxes_or_objects_the_figures_are_undefined():
    assert reliability(found([], [], 4))["calibration_error"] is None
    empty = curve(found([], [], 4))
    assert set(empty["precision"]) == {None} and set(empty["recall"]) == {0.0}
    assert set(curve(found([0.5], [0], 0))["recall"]) == {None}


def test_curves_tell_precision_and_recall_from_each_score_on():
    lines = curve(found([0.9, 0.5, 0.5, 0.1], [1, 1, 0, 1], 4))
    at = dict(zip(SCORES, zip(lines["precision"], lines["recall"], strict=True), strict=True))
    assert at[0.0] == (0.75, 0.75) and at[0.5] == (2 / 3, 0.5) and at[0.52] == (1.0, 0.25) and at[0.92] == (None, 0.0)


class TruthDrawer:
    """Draws twice the source's size; below encode ratio 0.5 with the source's boxes, above with none."""

    identity = {"ldm": {"multiple": 32}}

    def __init__(self, dataset):
        self.dataset, self.asked = dataset, []

    def draw(self, items, batch_size):
        self.asked += [(item.source_image_id, item.seed, item.strength) for item in items]
        return [self._one(item) for item in items]

    def _one(self, item):
        truth = [a for a in self.dataset.annotations_of(item.source_image_id) if not a.iscrowd and item.strength < 0.5]
        boxes = np.array([a.bbox_xywh for a in truth], dtype=float).reshape(-1, 4) * 2
        boxes[:, 2:] += boxes[:, :2]
        image = np.zeros((item.height, item.width, 3), np.uint8)
        return Drawn(image, boxes, np.full(len(boxes), 0.9), np.array([a.category_id for a in truth], int))


def test_agreement_is_full_where_the_sources_boxes_come_back_and_none_where_they_do_not(world_folder):
    drawer = TruthDrawer(read_dataset(world_folder, "val"))
    settings = dataclasses.replace(SETTINGS, ldm=dataclasses.replace(SETTINGS.ldm, resolution=128))
    nothing = real_labels(drawer.dataset, [])
    result, sheets = measure_ratios(drawer, nothing, settings, LabelRules(0.5, 0.3), images=4, seed=0)
    for row in result["ratios"]:
        if row["encode_ratio"] < 0.5:
            assert (row["map"], row["f1"], row["precision"], row["recall"]) == pytest.approx((1, 1, 1, 1))
            assert row["labels"] > 0
        else:
            assert (row["map"], row["f1"], row["precision"], row["recall"]) == (0.0, 0.0, None, 0.0)
    assert result["images"] == 4 and [row["encode_ratio"] for row in result["ratios"]] == list(RATIOS)
    assert (result["real"]["map"], result["real"]["labels"]) == (0.0, 0)
    by_ratio = {r: sorted((i, s) for i, s, strength in drawer.asked if strength == r) for r in RATIOS}
    assert all(pairs == by_ratio[0.1] and len(pairs) == 4 for pairs in by_ratio.values())  # one source, one noise
    assert sheets[0].encode_ratio is None and len(sheets) == 11
    assert all(len(sheet.images) == 4 for sheet in sheets)


def test_real_boxes_agree_with_themselves(world_folder):
    val = read_dataset(world_folder, "val")
    rows = [
        {"image_id": a.image_id, "category_id": a.category_id, "bbox": list(a.bbox_xywh), "score": 0.9}
        for a in val.annotations
    ]
    result, _ = measure_ratios(TruthDrawer(val), real_labels(val, rows), SETTINGS, LabelRules(0.5, 0.3), 99, 0)
    assert result["images"] == len(val.images)  # never more than there are
    assert result["real"]["map"] == result["real"]["f1"] == pytest.approx(1.0)


def test_a_report_is_complete_repeatable_and_leaves_weights_and_plans_alone(copy, world_folder, ldm_folder, tmp_path):
    weights, before = (copy / WEIGHTS).read_bytes(), load_drawer(world_folder, ldm_folder, copy, SETTINGS).identity
    card = json.loads((copy / CARD).read_text())
    numbers = report_quality(world_folder, ldm_folder, copy, tmp_path / "a", SETTINGS, 1, 0, True)
    assert json.loads((tmp_path / "a" / "quality.json").read_text()) == numbers
    assert numbers["real"]["map"] == pytest.approx(card["validation"]["map"])
    assert numbers["thresholds"] == card["thresholds"]
    page = (tmp_path / "a" / "report.html").read_text()
    assert "<script" not in page and "http" not in page.split("Content-Security-Policy")[1].split("How it was done")[0]
    assert page.count("data:image/jpeg") == 11 and "proxy" in page and "-1" not in page.split("<tbody>")[1]
    assert (copy / WEIGHTS).read_bytes() == weights
    after = json.loads((copy / CARD).read_text())
    assert {k: v for k, v in after.items() if k != "quality"} == card
    assert [row["encode_ratio"] for row in after["quality"]["encode_ratios"]["ratios"]] == list(RATIOS)
    assert digest(load_drawer(world_folder, ldm_folder, copy, SETTINGS).identity) == digest(before)
    report_quality(world_folder, ldm_folder, copy, tmp_path / "a", SETTINGS, 1, 0, False)
    assert (tmp_path / "a" / "report.html").read_text() == page


def test_an_adapter_that_finds_nothing_has_a_report_with_dashes(copy, world_folder, ldm_folder, tmp_path):
    adapter = load_adapter(copy, load_ldm(ldm_folder, device="cpu"))
    with torch.no_grad():
        for name, value in adapter.reader.named_parameters():
            if name.endswith("cls_logits.bias"):
                value.fill_(-30.0)
    save_adapter(adapter.reader, adapter.card, copy)
    assert any(name.endswith("cls_logits.bias") for name in load_file(copy / WEIGHTS))
    numbers = report_quality(world_folder, ldm_folder, copy, tmp_path / "r", SETTINGS, 1, 0, True)
    assert numbers["real"]["map"] == 0.0 and numbers["reliability"]["calibration_error"] is None
    assert {row["precision"] for row in numbers["encode_ratios"]["ratios"]} == {None}
    page = (tmp_path / "r" / "report.html").read_text()
    assert "found no box at all" in page and "<td>–</td>" in page
    with pytest.raises(ModelError, match="No class"):
        load_drawer(world_folder, ldm_folder, copy, with_generation(thresholds="per_class"))


def test_without_validation_images_the_report_says_what_to_do(copy, world_folder, ldm_folder, tmp_path):
    data = shutil.copytree(world_folder, tmp_path / "data")
    (data / "val.json").unlink()
    with pytest.raises(DatasetError, match=r"no val\.json.*de import --val"):
        measure_quality(data, ldm_folder, copy, SETTINGS, 1)


def test_an_adapter_of_other_classes_is_refused(copy, world_folder, ldm_folder):
    card = json.loads((copy / CARD).read_text())
    (copy / CARD).write_text(json.dumps({**card, "classes": [{"id": 1, "name": "cell"}]}))
    with pytest.raises(ModelError, match="knows the classes"):
        measure_quality(world_folder, ldm_folder, copy, SETTINGS, 1)


def test_generation_refuses_a_worse_adapter_and_one_that_was_not_measured(copy, world_folder, ldm_folder):
    with pytest.raises(ModelError, match="min_adapter_map=0.99"):
        load_drawer(world_folder, ldm_folder, copy, with_generation(min_adapter_map=0.99))
    card = json.loads((copy / CARD).read_text())
    del card["validation"], card["thresholds"]
    (copy / CARD).write_text(json.dumps(card))
    load_drawer(world_folder, ldm_folder, copy, SETTINGS)
    with pytest.raises(ModelError, match="not known"):
        load_drawer(world_folder, ldm_folder, copy, with_generation(min_adapter_map=0.01))
    with pytest.raises(ModelError, match="carries no thresholds"):
        load_drawer(world_folder, ldm_folder, copy, with_generation(thresholds="per_class"))


def test_thresholds_per_class_are_in_the_identity_and_low_ones_lower_the_floor(copy, world_folder, ldm_folder):
    card = json.loads((copy / CARD).read_text())
    for category_id, entry in card["thresholds"]["per_class"].items():
        entry["score"] = {"1": None, "2": 0.05}.get(category_id, 0.6)
    (copy / CARD).write_text(json.dumps(card))
    drawer = load_drawer(world_folder, ldm_folder, copy, with_generation(thresholds="per_class"))
    assert drawer.floor == 0.05
    assert drawer.identity["adapter"]["thresholds"] == {"1": None, "2": 0.05, **dict.fromkeys("3456", 0.6)}
    fixed = load_drawer(world_folder, ldm_folder, copy, SETTINGS)
    assert fixed.floor == 0.1 and "thresholds" not in fixed.identity["adapter"]


def test_a_report_with_another_wanted_precision_renews_the_cards_thresholds(copy):
    card = json.loads((copy / CARD).read_text())
    other = {**card["thresholds"], "wanted_precision": 0.5, "pooled": {"score": 0.2}}
    numbers = {
        "thresholds": other,
        "data": {"sha256": "d"},
        "reliability": {"calibration_error": None},
        "encode_ratios": dict.fromkeys(("images", "seed", "rule", "real", "ratios")),
    }
    assert record_quality(copy, numbers)["thresholds"] == other
    assert json.loads((copy / CARD).read_text())["thresholds"] == other
