from __future__ import annotations

import dataclasses
import hashlib
import json
import os

import pytest
from conftest import make_settings, result, write_source
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from stub_drawer import LOADER

from engine.data.dataset import read_dataset
from engine.errors import RunFailed
from engine.generation.merge import merge
from engine.generation.plan_file import load_plan
from engine.generation.records import count
from engine.generation.run import generate, resume, verify
from engine.generation.shard_state import Shard, read_shard
from engine.sections import Settings
from tasks.review import review

OF_THE_ITEM = (
    "item",
    "mode",
    "source_image_id",
    "seed",
    "strength",
    "guidance_scale",
    "eta",
    "prompt",
    "negative_prompt",
)


def test_the_folder_keeps_the_dataset_contract(unbroken):
    generated, source = read_dataset(unbroken, "annotations"), read_dataset(unbroken.parent / "data", "train")
    plan = load_plan(unbroken)
    assert generated.categories == source.categories
    assert [a.id for a in generated.annotations] == list(range(1, len(generated.annotations) + 1))
    for image in generated.images:
        item, de = plan.item(image.id), image.extra["de"]
        assert set(de) == {*OF_THE_ITEM, "ldm", "adapter", "plan"}
        assert all(de[name] == getattr(item, name) for name in OF_THE_ITEM)
        assert plan.digest.startswith(de["plan"])
        assert generated.load(image).size == (item.width, item.height)
    assert {a.iscrowd for a in generated.annotations} == {0, 1}
    assert all(a.extra["score"] >= (0.2 if a.iscrowd else 0.4) for a in generated.annotations)


def test_the_totals_add_up(unbroken):
    manifest, generated = json.loads((unbroken / "manifest.json").read_bytes()), read_dataset(unbroken, "annotations")
    counts = manifest["counts"]
    assert counts["planned"] == 17 == counts["kept"] + sum(counts["dropped"].values()) + sum(counts["failed"].values())
    assert counts["kept"] == len(generated.images) > 0 and counts["dropped"]["no_box"] > 0
    assert counts["boxes"] == sum(1 for a in generated.annotations if not a.iscrowd)
    assert counts["ignored"] == sum(a.iscrowd for a in generated.annotations)
    for entry in manifest["classes"]:
        of_class = [a for a in generated.annotations if a.category_id == entry["id"] and not a.iscrowd]
        assert entry["boxes"] == len(of_class) and entry["images"] == len({a.image_id for a in of_class})
    assert set(counts["dropped_boxes"]) == {"bad_number", "low_score", "too_small"}  # the stub makes each of them


def test_batch_size_shard_size_and_workers_change_nothing(bench, unbroken):
    for batch, shard in ((1, 5), (4, 50), (7, 5), (7, 50)):
        out = bench.generate(f"{batch}-{shard}", batch_size=batch, shard_size=shard)
        assert result(out) == result(unbroken)
    assert result(bench.generate("workers", workers=3, shard_size=2, batch_size=3)) == result(unbroken)


def test_generating_again_draws_nothing_and_changes_no_byte(bench):
    before = result(bench.generate())
    bench.drawn()
    assert result(bench.generate()) == before
    assert bench.drawn() == []


def test_images_are_links_and_copies_where_the_disk_has_none(bench, monkeypatch):
    out = bench.generate()
    name = sorted(os.listdir(out / "images"))[0]
    assert os.stat(out / "images" / name).st_nlink == 2

    def no_links(*_):
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    copied = bench.generate("copied")
    assert os.stat(copied / "images" / name).st_nlink == 1
    assert result(copied) == result(out) and verify(copied) == []
    (copied / "images" / name).write_bytes(b"rubbish")
    assert verify(copied) == [f"images/{name} has changed (sha256 differs)"]
    assert result(bench.generate("copied")) == result(out) and verify(copied) == []


def test_files_of_an_earlier_merge_go_and_foreign_ones_stay(bench):
    out = bench.generate()
    (out / "images" / "000000099.jpg").write_bytes(b"x")
    (out / "images" / "mine.jpg").write_bytes(b"x")
    merge(out)
    assert not (out / "images" / "000000099.jpg").exists()
    assert (out / "images" / "mine.jpg").exists()


def test_merge_wants_every_shard(bench):
    out = bench.generate()
    os.rename(out / "shards" / "00002", bench.root / "elsewhere")
    before = (out / "annotations.json").read_bytes()
    with pytest.raises(RunFailed, match=r"1 of 4 shards are not done: 2 \(not there\)"):
        merge(out)
    assert (out / "annotations.json").read_bytes() == before


def test_merge_reads_only_the_records_that_were_committed(bench):
    out = bench.generate()
    records = out / "shards" / "00001" / "records.jsonl"
    records.write_bytes(records.read_bytes().replace(b'"width":48', b'"width":96'))
    with pytest.raises(RunFailed, match="00001: records.jsonl has changed"):
        merge(out)


def test_merge_counts_the_records_itself(bench):
    out = bench.generate()
    commit = out / "shards" / "00001" / "shard.json"
    content = json.loads(commit.read_bytes())
    content["counts"]["boxes"] += 1
    commit.write_text(json.dumps(content))
    with pytest.raises(RunFailed, match="00001: shard.json counts .*its records say"):
        merge(out)


def test_a_total_that_is_not_the_plans_ends_the_merge(bench, monkeypatch):
    """Whatever the checks of a shard let through."""

    class Short(Shard):
        def records(self):
            return iter(list(super().records())[:-1])

    def reads(*args):
        shard = Short(**vars(read_shard(*args)))
        return dataclasses.replace(shard, counts=count(shard.records()))

    out = bench.generate()
    before = result(out)
    monkeypatch.setattr("engine.generation.merge.read_shard", reads)
    with pytest.raises(RunFailed, match="17 items were planned, the shards tell of .*planned=13"):
        merge(out)
    assert result(out) == before


def _kept(records: list[dict]) -> dict:
    return next(record for record in records if record.get("boxes"))


NONSENSE = {
    "none": lambda records: records.clear(),
    "no object": lambda records: records.__setitem__(0, 5),
    "twice": lambda records: records.__setitem__(1, records[0]),
    "another shard's item": lambda records: _kept(records).update(item=1),
    "far away": lambda records: _kept(records).update(item=10**9),
    "true for 1": lambda records: _kept(records).update(item=True),
    "no fate": lambda records: _kept(records).update(status="weird"),
    "a list for a fate": lambda records: _kept(records).update(status=[]),
    "no reason": lambda records: records[0].update(status="failed", reason=["x"]),
    "a width in words": lambda records: _kept(records).update(width="48"),
    "another width": lambda records: _kept(records).update(width=10**30),
    "no boxes": lambda records: _kept(records).update(boxes=None),
    "a number for a box": lambda records: _kept(records).update(boxes=[5]),
    "a box of words": lambda records: _kept(records)["boxes"][0].update(bbox=["a", 0, 1, 1]),
    "a short box": lambda records: _kept(records)["boxes"][0].update(bbox=[1, 2]),
    "a box outside": lambda records: _kept(records)["boxes"][0].update(bbox=[0, 0, 1e308, 1e308]),
    "a box turned over": lambda records: _kept(records)["boxes"][0].update(bbox=[5, 5, -1, 1]),
    "an unknown class": lambda records: _kept(records)["boxes"][0].update(category_id=99),
    "a score in words": lambda records: _kept(records)["boxes"][0].update(score='9,"x":1'),
    "a score above 1": lambda records: _kept(records)["boxes"][0].update(score=17),
    "counts in words": lambda records: records[0].update(dropped_boxes={"x": "y"}),
}


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_records_that_fit_their_sha256_but_not_their_items_are_drawn_again(bench, unbroken, nonsense):
    out = bench.generate()
    shard = out / "shards" / "00001"
    records = [json.loads(line) for line in (shard / "records.jsonl").read_text().splitlines()]
    NONSENSE[nonsense](records)
    forge(shard, "".join(json.dumps(record) + "\n" for record in records).encode())
    with pytest.raises(RunFailed, match="records.jsonl is not of this shard"):
        merge(out)
    assert any("records.jsonl is not of this shard" in problem for problem in verify(out))
    resume(out, loader=LOADER, verify=True)
    assert result(out) == result(unbroken)


@pytest.mark.parametrize("content", [b"junk\n", b"[" * 100_000, b"\xff\n", b'{"item":NaN}\n'])
def test_records_that_fit_their_sha256_but_are_no_json_are_refused(bench, content):
    out = bench.generate()
    forge(out / "shards" / "00001", content)
    with pytest.raises(RunFailed, match="records.jsonl is not of this shard"):
        merge(out)


def forge(shard, content: bytes) -> None:
    """Put other records into a committed shard, and into its shard.json."""
    (shard / "records.jsonl").write_bytes(content)
    summary = json.loads((shard / "shard.json").read_bytes())
    summary["files"]["records.jsonl"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (shard / "shard.json").write_text(json.dumps(summary))


HOSTILE = ('"; touch PWNED; "', "line\nbreak\r\n", "${HOME} $(touch PWNED) `touch PWNED`", "nul\x00byte", "../../etc/x")


@pytest.mark.parametrize("workers", [1, 2])
def test_hostile_words_are_stored_as_they_are_and_do_nothing(bench, monkeypatch, workers):
    monkeypatch.chdir(bench.root)
    data = write_source(bench.root / "hostile", HOSTILE)
    words = {"style": HOSTILE[0], "negative_prompt": HOSTILE[3], "keep_negatives": True}
    out = bench.root / "out"
    generate(data, "stub", bench.adapter, out, 5, 1, make_settings(**words), workers, "stub_drawer:load")
    generated = read_dataset(out, "annotations")
    assert {i.extra["de"]["prompt"] for i in generated.images} == {f"{text}, {HOSTILE[0]}" for text in HOSTILE}
    assert {i.extra["de"]["negative_prompt"] for i in generated.images} == {HOSTILE[3]}
    assert not list(bench.root.rglob("*PWNED*"))
    assert {entry.name for entry in bench.root.iterdir()} == {"adapter", "data", "hostile", "out"}
    assert all(len(i.file_name) == 13 for i in generated.images)


def test_it_scores_one_against_itself_in_pycocotools(unbroken):
    truth = COCO(str(unbroken / "annotations.json"))
    perfect = [dict(box) for box in truth.dataset["annotations"] if not box["iscrowd"]]
    evaluation = COCOeval(truth, truth.loadRes(perfect), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_the_manifest_counts_what_the_gates_found_for_as_long_as_the_labels_are_those(bench):
    out = bench.generate()
    bare = (out / "manifest.json").read_bytes()
    review(out, bench.data, Settings(), fiftyone="off")
    gates = json.loads((out / "gates.json").read_bytes())
    manifest = json.loads((out / "manifest.json").read_bytes())
    assert manifest.pop("gates") == {"batch": gates["batch"]["outcome"], **gates["counts"]}
    assert sum(gates["counts"]["verdicts"].values()) == len(read_dataset(out, "annotations").images)
    assert manifest == json.loads(bare)
    reviewed = (out / "manifest.json").read_bytes()
    merge(out)
    assert (out / "manifest.json").read_bytes() == reviewed and verify(out) == []
    gates["annotations"] = "0" * 64
    (out / "gates.json").write_text(json.dumps(gates))
    merge(out)
    assert (out / "manifest.json").read_bytes() == bare
