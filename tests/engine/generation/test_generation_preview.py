"""What `de plan` tells, and runs that a disk cannot hold."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
from conftest import make_settings
from stub_drawer import LOADER, StubDrawer

from engine.data.dataset import read_dataset
from engine.errors import ConfigError, RunConflict, RunFailed
from engine.generation import disk
from engine.generation.calibration import calibrate
from engine.generation.plan import make_plan
from engine.generation.plan_file import load_plan
from engine.generation.preview import preview
from engine.generation.source import DrawerSource
from flows.plan_table import plan_table


def preview_of(bench, images=17, workers=1, drawn=3, out="out", **generation) -> dict:
    source = DrawerSource(bench.data, "stub", bench.adapter, make_settings(**generation), LOADER)
    return preview(source, bench.root / out, images, 1, workers, drawn)


def plan_of(bench, images=17, **generation):
    settings = make_settings(**generation)
    return make_plan(read_dataset(bench.data, "train"), images, 1, settings, StubDrawer(bench.adapter).identity)


def test_it_counts_what_the_plan_holds(bench):
    wishes = {"styles": ("by day", "at night"), "text_to_image": 0.3, "class_weights": ("class9=2",)}
    shown, plan = preview_of(bench, images=100, **wishes), plan_of(bench, images=100, **wishes)
    dataset = read_dataset(bench.data, "train")
    images, objects = Counter(), Counter()
    for item in plan.items:
        held = [box.category_id for box in dataset.annotations_of(item.source_image_id)]
        objects.update(held)
        images.update(set(held))
    assert [(c["images"], c["objects"]) for c in shown["classes"]] == [(images[i], objects[i]) for i in (2, 5, 9)]
    assert [(c["name"], c["weight"], c["real_objects"]) for c in shown["classes"]] == [
        ("class2", 1, 3), ("class5", 1, 2), ("class9", 2, 1),
    ]  # fmt: skip
    assert shown["plan"] == plan.digest and shown["modes"] == {"img2img": 70, "text_to_image": 30}
    tenths = Counter(int(item.strength * 10) for item in plan.items if item.mode == "img2img")
    assert shown["strengths"] == {f"0.{i} to 0.{i + 1}": tenths[i] for i in sorted(tenths)}
    assert shown["styles"] == dict(Counter(item.prompt.rsplit(", ", 1)[1] for item in plan.items))
    assert shown["prompts"]["different"] == len({item.prompt for item in plan.items})
    assert (shown["sources"], shown["sizes"], shown["shards"]) == (5, {"48 x 32": 100}, 20)


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.7, 1.0])
def test_every_encode_ratio_has_a_place(bench, strength):
    shown = preview_of(bench, drawn=0, strength_min=strength, strength_max=strength)
    low, high = (float(part) for part in re.fullmatch(r"(.*) to (.*)", *shown["strengths"]).groups())
    assert list(shown["strengths"].values()) == [17] and low <= strength <= high and high - low < 0.11


def test_nothing_is_written_for_the_run(bench):
    shown = preview_of(bench)
    assert not (bench.root / "out").exists()
    assert len(bench.drawn()) == 1 + 3 and shown["time"]["drawn"] == 3
    assert preview_of(bench, drawn=0)["time"] is None and bench.drawn() == []
    before = bench.generate()
    names = sorted(path.name for path in before.rglob("*"))
    again = preview_of(bench)
    assert (again["shards_there"], again["disk"]["needed_bytes"]) == (4, 0)
    assert sorted(path.name for path in before.rglob("*")) == names
    with pytest.raises(RunConflict, match="style: '' -> 'x'"):
        preview_of(bench, style="x")
    with pytest.raises(RunConflict, match="not a generated dataset"):
        preview_of(bench, out="data")


def test_its_time_is_that_of_the_drawn_items(bench, monkeypatch):
    bench.behave(sleep_s=0.1)  # a batch
    monkeypatch.setattr("engine.generation.preview.usable_cores", lambda: 3)
    time = preview_of(bench, images=1000, workers=4, drawn=8)["time"]
    assert 0.025 <= time["seconds_per_image"] < 0.1 and time["first_seconds"] >= 0.1
    assert (time["workers"], time["at_once"], time["unit"]) == (4, 3, "core")
    assert time["hours"] == pytest.approx(1000 * time["seconds_per_image"] / 3600)
    longest = 67 * 5 * time["seconds_per_image"]  # 200 shards of 5 on 3 cores
    assert time["wall_seconds"] == pytest.approx(time["load_seconds"] + longest)


def test_the_drawn_items_stand_for_all_encode_ratios(bench):
    plan = plan_of(bench, images=200, batch_size=8, strength_min=0.0, strength_max=1.0)
    drawn = []

    class Watched(StubDrawer):
        def draw(self, items, *more):
            drawn.extend(items)
            return super().draw(items, *more)

    calibrate(plan, Watched(bench.adapter), 8)
    strengths = sorted(item.strength for item in drawn[1:])
    assert all(abs(strength - (i + 0.5) / 8) < 0.06 for i, strength in enumerate(strengths))
    seeds = {item.seed: item for item in plan.items}
    assert all(vars(item) | {"item": 0} == vars(seeds[item.seed]) | {"item": 0} for item in drawn)


def test_an_item_that_cannot_be_drawn_is_told_beforehand(bench):
    bench.behave(raise_items={"2": "no such picture"})
    with pytest.raises(RunFailed, match=r"1 of 3 items drawn to calibrate.*ValueError: no such picture"):
        preview_of(bench)


def test_the_disk_it_asks_for_is_what_the_run_takes(bench):
    shown = preview_of(bench, images=60, drawn=60, keep_negatives=True)
    out = bench.generate(images=60, keep_negatives=True)
    files = {path.stat().st_ino: path.stat() for path in out.rglob("*") if path.is_file()}
    taken = sum(entry.st_blocks * 512 for entry in files.values())
    assert 0.7 * taken < shown["disk"]["needed_bytes"] < 1.6 * taken
    assert shown["disk"]["from"] == "drawn items"


def test_a_run_that_the_disk_cannot_hold_is_refused_before_it_begins(bench, monkeypatch):
    monkeypatch.setattr(disk, "free_bytes", lambda out: 80_000)
    assert disk.check_disk(plan_of(bench, 5), bench.root / "out", disk.ImageSize(1000, 3)) is None
    with pytest.raises(ConfigError, match=r"17 images take about .* kB in .*out, and 80 kB are free there"):
        bench.generate()
    with pytest.raises(ConfigError, match="take about .* 80 kB are free"):
        preview_of(bench)
    assert not (bench.root / "out").exists() and bench.drawn() == []
    with pytest.raises(ConfigError, match=r"90000000 images take about 369 GB"):  # before it takes minutes to plan it
        preview_of(bench, images=90_000_000)


def test_a_run_that_is_nearly_done_goes_on_with_little_room_left(bench, monkeypatch):
    bench.behave(model_error_items=[16])
    with pytest.raises(Exception, match="noise level"):
        bench.generate()
    bench.behave()
    monkeypatch.setattr(disk, "free_bytes", lambda out: 60_000)  # enough for one shard of two images, not for 17
    bench.generate(shard_size=50)  # the plan there keeps its shards of 5, and they are counted so
    assert load_plan(bench.root / "out").shard_size == 5


def test_the_free_disk_is_that_of_the_next_folder_above(tmp_path):
    assert disk.free_bytes(tmp_path / "not" / "there" / "yet") == pytest.approx(disk.free_bytes(tmp_path), rel=0.1)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (999_900, "1 MB"), (1.23e15, "1.23e+03 TB")]
)
def test_bytes_for_people(count, text):
    assert disk.readable_bytes(count) == text


def test_the_table_is_aligned_and_says_it_all(bench):
    shown = preview_of(bench, images=100, workers=2, styles=("by day", "at\nnight" * 50), text_to_image=0.3)
    lines = plan_table(shown).splitlines()
    table = lines[lines.index("class   weight  real objects  images  objects") :]
    assert table[1] == "class2       1             3      60       60" and len(set(map(len, table[:4]))) == 1
    assert any(line.startswith("images   100 (70 img2img, 30 text to image)") for line in lines)
    assert any("with 2 workers" in line and "core-hours" in line for line in lines)
    assert max(len(line.partition(str(bench.root))[0]) for line in lines) < 120 and "at night" in "\n".join(lines)
    assert "words alone may hold others" in "\n".join(lines)
    plain = plan_table(preview_of(bench, drawn=0))
    assert "not measured" in plain and "words alone" not in plain and "style" not in plain
    json.dumps(shown)
