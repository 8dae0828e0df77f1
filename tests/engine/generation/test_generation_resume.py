"""A run is looked at, finished and checked from what is in its folder alone."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
from pathlib import Path

import pytest
from conftest import make_settings, result, write_source
from PIL import Image
from stub_drawer import LOADER, StubDrawer

from engine.data.dataset import read_dataset
from engine.errors import DatasetError, ModelError, RunConflict
from engine.generation.durable import to_json
from engine.generation.integrity import check_unchanged
from engine.generation.merge import _annotation
from engine.generation.plan_file import load_plan
from engine.generation.preview_sheet import IMAGES, TILE, PreviewSheet
from engine.generation.run import look, pending_shards, resume, run_shard
from engine.generation.run_file import read_run, store_of, write_run
from engine.generation.shard_state import PREVIEW, read_shard
from engine.generation.source import DrawerSource
from engine.generation.verify import inspect


def cut_off(bench, after: int = 8, **options) -> Path:
    bench.behave(model_error_items=[after])
    with pytest.raises(ModelError):
        bench.generate(**options)
    bench.behave()
    bench.drawn()
    return bench.root / "out"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_is_finished_from_its_folder_alone(bench, unbroken, workers, monkeypatch):
    out = cut_off(bench)
    monkeypatch.chdir(bench.root / "adapter")  # the paths hold from anywhere
    lines = []
    resume(out, workers, LOADER, tell=lines.append)
    assert bench.drawn() and result(out) == result(unbroken)
    told = "\n".join(lines)
    assert "4 shards planned: 1 done, 3 missing, 0 bad" in told
    assert f"Drawing 12 items in 3 shards with {workers} worker(s)" in told
    resume(out, loader=LOADER, tell=lines.append)
    assert "Nothing is left to draw" in lines[-1] and bench.drawn() == []


def test_what_was_relative_or_began_elsewhere_is_found_again(bench, monkeypatch):
    monkeypatch.chdir(bench.root)
    out = Path("out")
    source = DrawerSource(Path("data"), "stub", Path("adapter"), read_settings(bench), LOADER)
    write_run(out, source, None, 3)
    run = read_run(out, LOADER)
    assert run.source.data == bench.data and run.source.adapter == bench.adapter and run.workers == 3
    assert run.source.settings == source.settings and run.source.ldm == "stub" and run.store is None
    assert store_of(out) == out
    assert "loader" not in json.loads((out / "run.json").read_bytes())  # which code runs, no file decides


def read_settings(bench):
    return make_settings(style="snow", shard_size=3)


def test_a_resumed_run_tries_failed_items_again(bench, unbroken):
    bench.behave(raise_items={"7": "the disk of the sources was away"})
    from engine.errors import RunFailed

    with pytest.raises(RunFailed):
        bench.generate()
    bench.behave()
    bench.drawn()
    lines = []
    resume(bench.root / "out", loader=LOADER, tell=lines.append)
    assert "1 items failed, more than allowed" in lines[0]
    assert bench.drawn() == [6, 7, 8, 9, 10] and result(bench.root / "out") == result(unbroken)


def test_data_that_moved_or_changed_and_other_models_are_refused(bench):
    out = cut_off(bench)
    before = sorted(out.rglob("*"))
    bench.data.rename(bench.root / "moved")
    with pytest.raises(DatasetError, match=f"is not at {bench.data} any more"):
        resume(out, loader=LOADER)
    write_source(bench.data, ("a dog", "", "", "", ""))
    with pytest.raises(DatasetError, match="has changed since the run was planned: its digest is .*the plan's is"):
        resume(out, loader=LOADER)
    shutil.rmtree(bench.data)
    (bench.root / "moved").rename(bench.data)
    with pytest.raises(RunConflict, match="other models than run.json leads to .ldm.id: 'stub' -> 'other'"):
        resume(out, loader="test_generation_resume:load_another")
    assert bench.drawn() == [] and sorted(out.rglob("*")) == before
    resume(out, loader=LOADER)


def load_another(data, ldm, adapter, settings) -> StubDrawer:
    return StubDrawer(adapter, {"ldm": {"id": "other", "multiple": 16}, "adapter": {"sha256": "a" * 64}})


def _setting(run: dict, section: str, key: str, value) -> dict:
    run["settings"][section][key] = value
    return run


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "holds no run.json"),
        (b"", "damaged"),
        (b"[]", "damaged"),
        (b"[" * 100_000, "damaged"),
        (lambda run: run | {"version": 9}, "version 9"),
        (lambda run: run | {"workers": 0}, "workers 0"),
        (lambda run: run | {"store": "../x"}, "store '../x'"),
        (lambda run: run | {"settings": {}}, "damaged"),
        (lambda run: {k: v for k, v in run.items() if k != "data"}, "damaged"),
        (lambda run: run | {"ldm": 5}, "ldm is 5"),
        (lambda run: _setting(run, "generation", "max_failed_rate", "x"), "max_failed_rate must be float"),
        (lambda run: _setting(run, "generation", "rows_per_call", -3), "rows_per_call must be at least"),
        (lambda run: _setting(run, "ldm", "device", 5), "ldm.device must be str"),
        (lambda run: _setting(run, "generation", "steps", None), "generation.steps must be int"),
    ],
)
def test_a_missing_or_damaged_run_file_is_said_and_cured_by_generate(bench, content, word):
    out = cut_off(bench)
    path = out / "run.json"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else to_json(content(json.loads(path.read_bytes()))))
    with pytest.raises(DatasetError, match=re.escape(word)) as caught:
        resume(out, loader=LOADER)
    assert "de generate" in str(caught.value)
    bench.generate()
    resume(out, loader=LOADER)


def test_a_look_says_which_shards_are_what(bench):
    out = bench.generate()
    shutil.rmtree(out / "shards" / "00000")
    (out / "shards" / "00003" / "shard.json").write_bytes(b"")
    found = look(out)
    assert (found.planned, found.done, found.missing, list(found.bad), found.todo) == (4, 2, [0], [3], [0, 3])
    assert "4 shards planned: 2 done, 1 missing, 1 bad" in found.text(out) and "shard 3: shard.json" in found.text(out)
    findings = inspect(out)
    assert (findings.planned, findings.shards, findings.whole, findings.missing) == (17, 4, 2, [0])
    assert findings.counts.planned == 10 and list(findings.bad) == [3]
    assert pending_shards(out) == [0, 3]


def test_a_finished_shard_has_a_preview_that_is_no_part_of_the_dataset(bench):
    out = bench.generate()
    again = bench.generate("again", batch_size=1)
    for shard in range(4):
        name = f"shards/{shard:05d}/{PREVIEW}"
        found = read_shard(out, load_plan(out), shard, verify=True)
        if not found.counts.kept:
            assert PREVIEW not in found.files
            continue
        assert (out / name).read_bytes() == (again / name).read_bytes()
        assert PREVIEW in found.files and PREVIEW not in found.images
        with Image.open(out / name) as sheet:
            kept = min(found.counts.kept, IMAGES)
            assert sheet.width == min(4, kept) * TILE
    assert not list((out / "images").glob("*preview*"))
    (out / "shards" / "00001" / PREVIEW).unlink()
    assert pending_shards(out) == [1]


def test_a_preview_shows_boxes_where_they_are():
    buffer = io.BytesIO()
    Image.new("RGB", (256, 128)).save(buffer, "JPEG")
    boxes = [{"bbox": [64.0, 32.0, 96.0, 64.0], "iscrowd": 0}, {"bbox": [0.0, 0.0, 20.0, 20.0], "iscrowd": 1}]
    sheet = PreviewSheet()
    for _ in range(IMAGES + 5):
        sheet.add({"width": 256, "height": 128, "boxes": boxes}, buffer.getvalue())
    with Image.open(io.BytesIO(sheet.jpeg())) as image:
        assert image.size == (4 * TILE, 3 * TILE)
        red, green, blue = image.getpixel((TILE + 32, 32))  # left edge of the label in the second tile
        assert green > 150 and max(red, blue) < 100
        assert image.getpixel((TILE + 60, 32))[1] < 60  # inside it is the image
        assert min(image.getpixel((5, 10))[:2]) > 100  # the ignore region is yellow
        assert image.getpixel((5, 100)) == (255, 255, 255)  # below the image is paper
    assert PreviewSheet().jpeg() == b""


def test_a_line_of_a_box_is_the_json_of_a_box():
    rng = random.Random(0)
    for number in range(3000):
        x, y, w, h = (rng.choice([round(rng.uniform(0, 3000), 2), rng.randrange(3000), 1e-2, 1e21]) for _ in range(4))
        box = {
            "category_id": rng.randrange(1, 2**53),
            "bbox": [x, y, w, h],
            "iscrowd": rng.randrange(2),
            "score": rng.choice([0.5, 1.0, 1e-7, round(rng.random(), 4)]),
        }
        line = {"id": number, "image_id": 7, **box, "area": round(w * h, 4)}
        order = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "score")
        assert _annotation(number, 7, box) == ",\n" + to_json({name: line[name] for name in order}).decode()


def test_only_one_shard_is_in_memory_at_a_time(bench, monkeypatch):
    out = bench.generate(shard_size=2)
    import gc

    from engine.generation import merge as merge_module
    from engine.generation.shard_state import Shard

    most = []
    placed = merge_module._Merged._note

    def note(self, record, shard):
        most.append(sum(type(thing) is Shard for thing in gc.get_objects()))
        placed(self, record, shard)

    monkeypatch.setattr(merge_module._Merged, "_note", note)
    merge_module.merge(out)
    assert max(most) <= 2


def test_an_unfinished_dataset_is_refused_before_it_is_used(bench):
    out = bench.generate()
    check_unchanged(out, read_dataset(out, "annotations").images)
    (out / "manifest.json").unlink()
    with pytest.raises(DatasetError, match="not finished.*de resume"):
        check_unchanged(out, read_dataset(out, "annotations").images)
    check_unchanged(bench.data, read_dataset(bench.data, "train").images)  # not one of ours


def test_a_withdrawn_shard_is_drawn_by_whoever_comes_first(bench, unbroken):
    from engine.generation.run import withdraw

    out = bench.generate()
    image = min((out / "shards" / "00002" / "images").iterdir())
    image.write_bytes(b"!" + image.read_bytes()[1:])
    plan = load_plan(out)
    withdraw(out, plan, {1: "whole after all", 2: "changed"})
    assert pending_shards(out) == [2]
    run_shard(out, 2, StubDrawer(bench.adapter))
    resume(out, loader=LOADER)
    assert result(out) == result(unbroken)
