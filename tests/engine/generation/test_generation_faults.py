from __future__ import annotations

import builtins
import errno
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from conftest import make_settings, result, within
from stub_drawer import LOADER, StubDrawer, draw_one

from engine.errors import ConfigError, ModelError, RunConflict, RunFailed
from engine.generation import drawing, durable
from engine.generation.drawing import WAITING, ImageWriter
from engine.generation.local_store import LocalStore
from engine.generation.plan_file import load_plan, prepare
from engine.generation.run import generate, look, pending_shards, resume, run_shard, verify
from engine.generation.shard_state import PREVIEW, RECORDS, BadShard, read_shard


@pytest.mark.parametrize("which", ["ends", pytest.param("every", marks=pytest.mark.slow)])
@pytest.mark.parametrize("scenario", ["fresh", "repair"])
def test_killed_at_any_write_point_a_run_ends_in_the_same_bytes(tmp_path, scenario, which):
    command = [sys.executable, str(Path(__file__).with_name("kill_points.py")), str(tmp_path), scenario, which]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["problems"] == []
    assert found["killed"] == found["points"] > 60
    assert found["interrupted"] > 30  # so many of the kills left something to do


def test_finished_shards_are_not_drawn_again(bench, unbroken):
    bench.behave(model_error_items=[8])  # the run ends in its second shard
    with pytest.raises(ModelError):
        bench.generate()
    out = bench.root / "out"
    bench.behave()
    bench.drawn()
    assert result(bench.generate(out.name)) == result(unbroken)
    assert bench.drawn() == list(range(6, 18))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda shard: shard.joinpath("shard.json").unlink(), "shard.json is missing"),
        (lambda shard: shard.joinpath("shard.json").write_bytes(b""), "not readable"),
        (lambda shard: shard.joinpath("shard.json").write_bytes(b'{"version":1,"plan'), "not readable"),
        (lambda shard: shard.joinpath("shard.json").write_bytes(b"[]"), "not readable"),
        (lambda shard: edit(shard, plan="0" * 64), "made by plan 0000"),
        (lambda shard: edit(shard, version=7), "version 7"),
        (lambda shard: edit(shard, items=[6, 7, 8, 9, 11]), "other items"),
        (lambda shard: edit(shard, shard=3), "other items"),
        (lambda shard: edit(shard, files={}), "does not fit its counts"),
        (lambda shard: edit_files(shard, {"images/../../x.jpg": {"size": 1, "sha256": ""}}), "does not fit its counts"),
        (lambda shard: edit_files(shard, {"records.jsonl": {"size": "1", "sha256": ""}}, 0), "files is not readable"),
        (lambda shard: edit_counts(shard, planned=1, kept=1), "6 planned items of 5"),
        (lambda shard: edit_counts(shard, kept=1), "do not add up"),
        (lambda shard: edit_counts(shard, boxes=1), "not those of its records"),
        (lambda shard: first_image(shard).unlink(), "jpg is missing"),
        (lambda shard: first_image(shard).write_bytes(b""), "has 0 bytes"),
        (lambda shard: flip(first_image(shard)), "jpg has changed"),
        (lambda shard: flip(shard / "records.jsonl"), "records.jsonl has changed"),
    ],
)
def test_a_shard_that_is_not_whole_is_named_and_drawn_again(bench, unbroken, caplog, damage, reason):
    out = bench.generate()
    damage(out / "shards" / "00001")
    found = verify(out)
    assert found and all(text.startswith("shards/00001: ") and reason in text for text in found)
    with pytest.raises(BadShard, match=reason):
        read_shard(out, load_plan(out), 1, verify=True)
    seen_at_once = "has changed" not in reason and "records" not in reason  # else only who reads every byte can know
    assert pending_shards(out) == ([1] if seen_at_once else []) and look(out, verify=True).todo == [1]
    bench.drawn()
    with caplog.at_level(logging.WARNING):
        bench.generate() if seen_at_once else resume(out, loader=LOADER, verify=True)
    assert any("Shard 1 " in text and reason in text for text in caplog.messages)
    assert bench.drawn() == [6, 7, 8, 9, 10]
    assert result(out) == result(unbroken) and verify(out) == []


def test_a_folder_that_cannot_be_written_in_is_said_before_models_are_loaded(bench, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append((path, mode)))  # root may write anywhere
    with pytest.raises(ConfigError, match="cannot be written in"):
        generate(bench.data, "missing", bench.adapter, bench.root / "a" / "b", 17, 1, make_settings(), 1, LOADER)
    assert asked == [(bench.root, os.W_OK | os.X_OK)]


def test_a_folder_of_something_else_is_refused_before_models_are_loaded(bench):
    with pytest.raises(RunConflict, match="is not empty"):
        generate(bench.data, "missing", bench.adapter, bench.data, 17, 1, make_settings(), 1, LOADER)


def test_cleaning_up_hides_no_error(bench, monkeypatch):
    def refuse(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    bench.behave(model_error_items=[8])
    monkeypatch.setattr(LocalStore, "remove_leftovers", refuse)
    with pytest.raises(ModelError):
        bench.generate()


@pytest.mark.parametrize("there", [True, False])
def test_a_shard_that_is_a_link_is_replaced_by_a_folder_and_its_target_is_left_alone(bench, unbroken, there):
    out = bench.generate()
    shard, elsewhere = out / "shards" / "00001", bench.root / "elsewhere"
    shard.rename(elsewhere)
    shard.symlink_to(elsewhere)
    assert verify(out) == []
    if there:
        image = first_image(elsewhere)
        size = image.stat().st_size
        image.unlink()  # the merged name is the same file, and stays as it is
        image.write_bytes(b"x" * size)
    else:
        elsewhere.rename(bench.root / "another disk")  # not mounted
    for _ in range(2):
        resume(out, loader=LOADER, verify=True)
    assert result(out) == result(unbroken) and verify(out) == []
    assert not shard.is_symlink() and elsewhere.exists() == there
    assert sorted(path.name for path in (out / "shards").iterdir()) == ["00000", "00001", "00002", "00003"]


def test_a_file_in_the_place_of_a_shard_goes_and_foreign_names_stay(bench, unbroken):
    out = bench.generate()
    shards = out / "shards"
    (shards / "00001").rename(bench.root / "elsewhere")
    (shards / "00001").write_text("x")
    foreign = [".tmp-mine-1", ".DS-0"]
    for name in foreign:
        (shards / name).mkdir()
    (shards / ".tmp-00002-killed").mkdir()
    resume(out, loader=LOADER)
    assert result(out) == result(unbroken)
    found = sorted(path.name for path in shards.iterdir())
    assert found == sorted([*foreign, "00000", "00001", "00002", "00003"])


def edit(shard: Path, /, **changes) -> None:
    content = json.loads((shard / "shard.json").read_bytes())
    (shard / "shard.json").write_text(json.dumps(content | changes))


def edit_files(shard: Path, added: dict, gone: int = 1) -> None:
    """Put entries into the list of files, in the place of as many images."""
    files = json.loads((shard / "shard.json").read_bytes())["files"]
    images = [name for name in files if name.startswith("images/")]
    edit(shard, files={name: files[name] for name in files if name not in images[:gone]} | added)


def edit_counts(shard: Path, **more: int) -> None:
    counts = json.loads((shard / "shard.json").read_bytes())["counts"]
    edit(shard, counts=counts | {name: counts[name] + number for name, number in more.items()})


def first_image(shard: Path) -> Path:
    return min((shard / "images").iterdir())


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["annotations.json", "manifest.json", "images"])
def test_damage_to_the_merged_files_is_found_and_cured(bench, unbroken, name):
    out = bench.generate()
    path = min((out / "images").iterdir()) if name == "images" else out / name
    path.unlink()
    assert [problem for problem in verify(out) if path.name in problem]
    if name != "manifest.json":
        path.write_bytes(b"{}")
        assert verify(out) == [f"{path.relative_to(out)} has changed (sha256 differs)"]
    bench.drawn()
    assert result(bench.generate()) == result(unbroken) and verify(out) == []
    assert bench.drawn() == []


@pytest.mark.parametrize("name", ["images", RECORDS, PREVIEW, "shard.json"])
def test_a_full_disk_fails_the_shard_and_leaves_the_others(bench, unbroken, monkeypatch, name):
    written = []

    def fills_up(path, mode="r", *args):
        if "w" in mode and "shards" in str(path):
            written.append(path)
            if ".tmp-00001-" in str(path) and name in Path(path).parts:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return builtins.open(path, mode, *args)

    monkeypatch.setattr(durable, "open", fills_up, raising=False)
    with pytest.raises(RunFailed, match="shard 1: OSError.*No space left.*same command again"):
        bench.generate()
    out = bench.root / "out"
    # No further shard was begun, nothing tried again, nothing written behind the error.
    assert name in written[-1].parts and len([path for path in written if path == written[-1]]) == 1
    assert name != "images" or ".tmp-00001-" not in str(written[-2])
    assert [entry.name for entry in (out / "shards").iterdir()] == ["00000"]
    monkeypatch.undo()
    bench.drawn()
    assert result(bench.generate()) == result(unbroken)
    assert bench.drawn() == list(range(6, 18))


def test_a_shard_that_fails_takes_its_work_away_itself(bench):
    """Before the run or the next attempt tidies up."""
    plan = prepare(bench.data, bench.root / "out", 17, 1, make_settings(), StubDrawer(bench.adapter).identity)
    bench.behave(model_error_items=[8])
    with pytest.raises(ModelError):
        run_shard(bench.root / "out", 1, StubDrawer(bench.adapter), plan=plan)
    assert list((bench.root / "out" / "shards").iterdir()) == []


def test_a_failed_write_ends_drawing_and_writing_and_leaves_nobody_waiting(bench, monkeypatch):
    settings = make_settings(keep_negatives=True)
    plan = prepare(bench.data, bench.root / "out", 17, 1, settings, StubDrawer(bench.adapter).identity)
    item, taken, written, full = plan.items_of(0)[0], [], [], threading.Event()
    drawn = draw_one(item)

    def fails(path, content):
        written.append(path)
        full.wait(30)
        raise OSError(errno.ENOSPC, "No space left on device")

    def take_many() -> None:
        with ImageWriter(bench.root, plan) as writer:
            for _ in range(20_000):
                taken.append(item)
                writer.take(item, drawn)

    monkeypatch.setattr(drawing, "_write", fails)
    threading.Timer(0.5, full.set).start()  # until then one is in hand, the others fill the queue
    with pytest.raises(OSError, match="No space left"):
        within(30, take_many)
    assert len(written) == 1 and len(taken) <= WAITING + 3
    with pytest.raises(OSError, match="No space left"), ImageWriter(bench.root, plan) as writer:
        writer.take(item, drawn)  # the last one: nobody asks again


def test_an_item_that_always_fails_does_not_take_its_shard_along(bench):
    bench.behave(raise_items={"7": "cannot\ndraw"})
    out = bench.generate(max_failed_rate=0.1)
    manifest = json.loads((out / "manifest.json").read_bytes())
    assert manifest["counts"]["failed"] == {"ValueError": 1}
    assert manifest["failed_items"] == [{"item": 7, "reason": "ValueError", "error": "cannot draw"}]
    counts = manifest["counts"]
    assert counts["kept"] + sum(counts["dropped"].values()) + 1 == 17
    assert verify(out) == []
    bench.drawn()
    bench.generate(max_failed_rate=0.1)  # allowed, so there is nothing to do
    assert bench.drawn() == []


def test_too_many_failed_items_fail_the_run_and_are_tried_again(bench, unbroken):
    bench.behave(raise_items={"7": "the disk of the sources was away"})
    with pytest.raises(RunFailed, match=r"1 of 17 items.*max_failed_rate=0.0.*item 7: ValueError: the disk"):
        bench.generate()
    out = bench.root / "out"
    assert json.loads((out / "manifest.json").read_bytes())["counts"]["failed"] == {"ValueError": 1}
    bench.behave()
    bench.drawn()
    assert result(bench.generate()) == result(unbroken)
    assert bench.drawn() == [6, 7, 8, 9, 10]


def test_out_of_memory_halves_what_is_in_flight_and_says_so(bench, unbroken, caplog):
    bench.behave(fits=1)
    with caplog.at_level(logging.WARNING):
        assert result(within(60, bench.generate, batch_size=4)) == result(unbroken)
    told = [text for text in caplog.messages if "Out of memory" in text]
    assert len(told) == 2 and "4 images in flight: it goes on with 2" in told[0] and "MemoryError" in told[0]
    drawn = bench.drawn()
    assert drawn[:7] == [1, 2, 3, 4, 1, 2, 1] and drawn[7:] == list(range(2, 18))  # and it is not forgotten


def test_too_little_memory_for_one_image_fails_the_shard_and_not_the_item(bench):
    bench.behave(fits=0)
    with pytest.raises(RunFailed, match="shard 0: RunFailed: Out of memory with a single image"):
        bench.generate()
    assert not list((bench.root / "out" / "shards").iterdir())


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_memory_that_runs_out_while_an_image_is_written_fails_the_shard_and_not_the_item(
    bench, unbroken, monkeypatch, error
):
    jpeg, calls = drawing.encode_jpeg, []

    def runs_out(*args):
        calls.append(args)
        if len(calls) == 3:
            raise error
        return jpeg(*args)

    monkeypatch.setattr(drawing, "encode_jpeg", runs_out)
    assert result(bench.generate()) == result(unbroken)  # at the second attempt
    assert len(calls) > 3


def test_an_error_of_the_model_ends_the_run_at_once(bench):
    bench.behave(model_error_items=[7])
    with pytest.raises(ModelError, match="noise level"):
        bench.generate()
    assert [entry.name for entry in (bench.root / "out" / "shards").iterdir()] == ["00000"]


def test_a_shard_that_always_fails_is_listed_and_the_others_are_done(bench, unbroken, monkeypatch):
    def broken_disk(path, mode="r", *args):
        if ".tmp-00002" in str(path):
            raise OSError(errno.EIO, "Input/output error")
        return builtins.open(path, mode, *args)

    monkeypatch.setattr(durable, "open", broken_disk, raising=False)
    with pytest.raises(RunFailed, match=r"1 of 4 shards failed \(shard 2: OSError: .*Input/output error\)"):
        bench.generate()
    out = bench.root / "out"
    assert sorted(entry.name for entry in (out / "shards").iterdir()) == ["00000", "00001", "00003"]
    assert not (out / "annotations.json").exists()
    assert pending_shards(out) == [2]
    monkeypatch.undo()
    assert result(bench.generate()) == result(unbroken)


def test_changed_settings_are_refused_and_nothing_is_overwritten(bench):
    out = bench.generate()
    before = result(out) | {"plan": (out / "plan.json").read_text()}
    bench.drawn()
    with pytest.raises(RunConflict, match="holds another run"):
        bench.generate(style="in the rain")
    assert result(out) | {"plan": (out / "plan.json").read_text()} == before
    assert bench.drawn() == []


def test_another_drawer_than_the_planned_one_is_refused(bench):
    out = bench.generate()
    other = StubDrawer(bench.adapter, {"ldm": {"id": "other", "multiple": 16}, "adapter": {}})
    with pytest.raises(RunConflict, match="planned with .*stub.* now .*other"):
        run_shard(out, 0, other)


def test_any_order_of_shards_gives_the_same_bytes(bench, unbroken):
    bench.behave(model_error_items=[1])
    with pytest.raises(ModelError):
        bench.generate()
    out = bench.root / "out"
    bench.behave()
    for shard in (3, 1, 0, 2):
        assert run_shard(out, shard, StubDrawer(bench.adapter)).adds_up
    bench.drawn()
    assert result(bench.generate()) == result(unbroken)
    assert bench.drawn() == []


def test_a_missing_model_is_a_users_error_in_process_and_in_a_worker(bench):
    for workers in (1, 2):
        with pytest.raises(ModelError, match="no model 'missing'"):
            generate(bench.data, "missing", bench.adapter, bench.root / "x", 3, 1, make_settings(), workers, LOADER)
    assert not (bench.root / "x").exists()
