from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import make_settings, write_source

from engine.data.dataset import read_dataset, subset
from engine.errors import ConfigError, DatasetError, RunConflict
from engine.generation.items_file import is_items, write_items
from engine.generation.plan import make_plan
from engine.generation.plan_file import load_plan, prepare
from engine.generation.prompts import template
from engine.generation.store import open_store

IDENTITY = {"ldm": {"id": "stub", "multiple": 16}, "adapter": {"sha256": "a"}}


def plan_of(folder: Path, images=23, seed=3, identity=IDENTITY, **generation):
    return make_plan(read_dataset(folder, "train"), images, seed, make_settings(**generation), identity)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "data", ("a dog", "", "a cat", "", " "))


def test_items_are_numbered_seeded_apart_and_in_range(source):
    plan = plan_of(source, images=200, strength_min=0.3, strength_max=0.35, guidance_min=1.0, guidance_max=3.0)
    items = plan.items
    assert [item.item for item in items] == list(range(1, 201))
    assert len({item.seed for item in items}) == 200
    assert all(0 <= item.seed < 2**53 for item in items)
    for values, low, high in (
        ([item.strength for item in items], 0.3, 0.35),
        ([item.guidance_scale for item in items], 1.0, 3.0),
        ([item.eta for item in items], 0.1, 0.4),
    ):
        assert low <= min(values) < low + 0.1 * (high - low)
        assert high >= max(values) > high - 0.1 * (high - low)
        assert abs(sum(values) / 200 - (low + high) / 2) < 0.1 * (high - low)
    assert {(item.width, item.height) for item in items} == {(48, 32)}  # 44x32 at resolution 32, multiples of 16


@pytest.mark.parametrize("images", [1, 4, 5, 23])
def test_sources_serve_equally_often(source, images):
    uses = Counter(item.source_image_id for item in plan_of(source, images=images).items)
    assert max(uses.values()) - min(uses.values()) <= 1
    assert len(uses) == min(images, 5)


def test_an_item_keeps_its_seed_when_more_images_are_wanted(source):
    assert plan_of(source, images=23).items == plan_of(source, images=60).items[:23]


def test_an_item_holds_plain_values_that_json_takes(source):
    item = plan_of(source).item(23)
    assert json.loads(json.dumps(vars(item))) == vars(item)
    assert [type(value) for value in vars(item).values()] == [int, int, str, str, str, int, *[float] * 3, int, int, str]
    for number in (0, -1, 24):
        with pytest.raises(ValueError, match="not one of the plan's 23"):
            plan_of(source).item(number)


def test_another_run_seed_gives_other_seeds_and_another_order(source):
    first, second = plan_of(source, seed=3), plan_of(source, seed=4)
    assert not {item.seed for item in first.items} & {item.seed for item in second.items}
    assert [i.source_image_id for i in first.items[:5]] != [i.source_image_id for i in second.items[:5]]


@pytest.mark.parametrize("shard_size", [1, 5, 23, 50])
def test_shards_cut_the_items_without_gap_or_overlap(source, shard_size):
    plan = plan_of(source, shard_size=shard_size)
    assert [item for shard in range(plan.shards) for item in plan.items_of(shard)] == list(plan.items)
    with pytest.raises(ValueError, match="not one of"):
        plan.items_of(plan.shards)


def test_the_digest_follows_what_changes_pixels_or_labels(source, tmp_path):
    base = plan_of(source).digest
    assert plan_of(source, shard_size=7, batch_size=1, max_failed_rate=0.5).digest == base
    relabelled = write_source(tmp_path / "data", ("a dog", "", "a cat", "", "!"))
    others = [
        plan_of(source, images=24),
        plan_of(source, seed=4),
        plan_of(source, identity=IDENTITY | {"adapter": {"sha256": "b"}}),
        plan_of(source, score_threshold=0.5),
        plan_of(source, style="snow"),
        plan_of(source, styles=("snow",)),
        plan_of(source, text_to_image=0.5),
        plan_of(source, variants_per_image=5),
        plan_of(source, class_weights=("class2=2",)),
        plan_of(source, balance="rarity"),
        plan_of(source, jpeg_quality=90),
        plan_of(relabelled),
    ]
    assert len({base, *(plan.digest for plan in others)}) == len(others) + 1


def test_prompts(source):
    def prompts(**generation) -> dict[int, str]:
        return {item.source_image_id: item.prompt for item in plan_of(source, images=5, **generation).items}

    classes = {1: "class2, class5, class9", 2: "class2, class5", 3: "class2"}
    by_template = {i: f"A photo, with {c} in the photo" for i, c in classes.items()} | {4: "A photo", 5: "A photo"}
    assert prompts() == by_template | {1: "a dog", 3: "a cat"}  # a blank caption is none
    assert prompts(prompt="template") == by_template
    assert prompts(prompt="none") == dict.fromkeys(range(1, 6), "")
    assert prompts(prompt="none", style="at night") == dict.fromkeys(range(1, 6), "at night")
    assert prompts(style="at night")[1] == "a dog, at night"
    assert {item.negative_prompt for item in plan_of(source, negative_prompt="blur").items} == {"blur"}
    assert template("clipart", ["cat", "dog"]) == "A clipart, with cat, dog in the clipart"


def test_a_plan_needs_images_and_sources(source):
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        plan_of(source, images=0)
    with pytest.raises(ConfigError, match="run seed"):
        plan_of(source, seed=-1)
    with pytest.raises(DatasetError, match="no image"):
        make_plan(subset(read_dataset(source, "train"), []), 3, 0, make_settings(), IDENTITY)


def test_a_plan_comes_back_from_its_file(source, tmp_path):
    made = prepare(source, tmp_path / "out", 23, 3, make_settings(), IDENTITY)
    assert made == load_plan(tmp_path / "out") == plan_of(source)
    assert prepare(source, tmp_path / "out", 23, 3, make_settings(), IDENTITY) == made


def test_a_resumed_plan_keeps_its_shards(source, tmp_path):
    prepare(source, tmp_path, 23, 3, make_settings(shard_size=5), IDENTITY)
    resumed = prepare(source, tmp_path, 23, 3, make_settings(shard_size=50, batch_size=7), IDENTITY)
    assert (resumed.shard_size, resumed.batch_size) == (5, 7)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"seed": 4}, "seed: 3 -> 4"),
        ({"images": 24}, "images: 23 -> 24"),
        ({"identity": IDENTITY | {"ldm": {"id": "new", "multiple": 16}}}, "identity.ldm.id: 'stub' -> 'new'"),
        ({"settings": make_settings(style="x")}, "settings.generation.style: '' -> 'x'"),
    ],
)
def test_another_plan_in_the_folder_is_refused_with_both_digests(source, tmp_path, change, word):
    arguments = {"images": 23, "seed": 3, "settings": make_settings(), "identity": IDENTITY}
    old = prepare(source, tmp_path, **arguments)
    before = (tmp_path / "plan.json").read_bytes()
    new = make_plan(read_dataset(source, "train"), **(arguments | change))
    with pytest.raises(RunConflict) as caught:
        prepare(source, tmp_path, **(arguments | change))
    assert all(text in str(caught.value) for text in (old.digest, new.digest, word))
    assert (tmp_path / "plan.json").read_bytes() == before


def test_a_folder_of_something_else_is_not_written_in(source, tmp_path):
    with pytest.raises(RunConflict, match=r"no plan\.json but is not empty"):
        prepare(source, source, 23, 3, make_settings(), IDENTITY)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunConflict, match="is a file"):
        prepare(source, tmp_path / "file", 23, 3, make_settings(), IDENTITY)
    assert not (source / "plan.json").exists()


def _edited(content: bytes, **changes) -> bytes:
    return json.dumps(json.loads(content) | changes).encode()


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda content: b"", "damaged"),
        (lambda content: content[: len(content) // 2], "damaged"),
        (lambda content: b"[" * 100_000, "damaged"),
        (lambda content: b"[]", "damaged"),
        (lambda content: _edited(content, shard_size=0), "shard_size is 0"),
        (lambda content: _edited(content, shard_size="5"), "shard_size is '5'"),
        (lambda content: _edited(content, categories=[]), "digest"),
        (lambda content: b'{"version":' + b"9" * 4000 + b"}", "is of version 9"),
        (lambda content: _edited(content, prompts=None), "damaged"),
        (lambda content: _edited(content, items_sha256=None), "items_sha256 is no text"),
        (lambda content: content.replace(b'"seed":3', b'"seed":4'), "digest"),
        (lambda content: _edited(content, version=1), "version 1"),
    ],
)
def test_a_damaged_plan_is_not_believed(source, tmp_path, damage, word):
    prepare(source, tmp_path, 23, 3, make_settings(), IDENTITY)
    path = tmp_path / "plan.json"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DatasetError, match=word) as caught:
        load_plan(tmp_path)
    assert str(path) in str(caught.value)


def _change(content: dict, path: str, value) -> None:
    *above, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in above:
        content = content[part]
    content[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec", "x"),
        ("spec", []),
        ("spec", {}),
        ("spec.identity", None),
        ("spec.settings", {}),
        ("spec.settings.generation", []),
        ("spec.seed", float("nan")),
        ("spec.identity.ldm", float("inf")),
        ("spec.data", 5),
        ("sources", {"a": 1}),
        ("sources.0", 5),
        ("sources.0", [1]),
        ("sources.0.0", "x"),
        ("sources.0.2", 10**9),
        ("sources.0.3", -1),
        ("prompts.0", []),
        ("prompts.0", ["a", 2]),
        ("styles.0", 5),
        ("categories.0", [1]),
        ("categories.0", [1, ["y"], {}]),
        ("categories.0.0", float("inf")),
        ("shard_size", True),
    ],
)
def test_a_plan_of_other_kinds_is_not_believed_even_with_its_own_digest(source, tmp_path, monkeypatch, path, value):
    prepare(source, tmp_path, 23, 3, make_settings(), IDENTITY)
    content = json.loads((tmp_path / "plan.json").read_bytes())
    _change(content, path, value)
    (tmp_path / "plan.json").write_text(json.dumps(content))
    # Whoever forges the content can forge the digest.
    monkeypatch.setattr("engine.generation.plan._plan_digest", lambda plan: content["digest"])
    with pytest.raises(DatasetError, match=r"plan\.json is damaged"):
        load_plan(tmp_path)


@pytest.mark.parametrize(
    ("column", "value"), [("strength", np.nan), ("strength", -0.1), ("guidance_scale", np.inf), ("eta", 1e308)]
)
def test_items_that_nothing_can_be_drawn_with_are_not_believed(source, tmp_path, monkeypatch, column, value):
    plan = prepare(source, tmp_path, 23, 3, make_settings(), IDENTITY)
    rows = plan.rows.copy()
    rows[column][5] = value
    forged = write_items(open_store(tmp_path), rows)
    (tmp_path / "plan.json").write_bytes(_edited((tmp_path / "plan.json").read_bytes(), items_sha256=forged))
    monkeypatch.setattr("engine.generation.plan._plan_digest", lambda _: plan.digest)
    with pytest.raises(DatasetError, match=f"column '{column}'"):
        load_plan(tmp_path)


def test_no_plan_at_all(tmp_path):
    with pytest.raises(DatasetError, match="holds no plan"):
        load_plan(tmp_path)


def _npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, rows=np.zeros(3))
    return buffer.getvalue()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


class _Trap:
    def __reduce__(self):
        return Path.touch, (Path("unpickled"),)


def _pointing_outside(content: bytes) -> bytes:
    rows = np.load(io.BytesIO(content))
    rows["prompt"][-1] = 1000
    return _npy(rows)


DAMAGE = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[:-1],
    "longer": lambda content: content + b"x",
    "header cut": lambda content: content[:40],
    "header of many lines": lambda content: b"\x93NUMPY\x01\x00\x06\x00" + b"{'a': ",
    "no npy": lambda content: b"{}" * 100,
    "npz": lambda content: _npz(),
    "other columns": lambda content: _npy(np.zeros(23)),
    "no rows": lambda content: _npy(np.load(io.BytesIO(content))[:0]),
    "pickled": lambda content: _npy(np.array([_Trap()] * 23, dtype=object)),
    "flipped bit": lambda content: content[:-16] + bytes([content[-16] ^ 1]) + content[-15:],
    "points outside": _pointing_outside,
}


@pytest.mark.parametrize(
    ("damage", "believed"),
    # Bytes behind a whole table are seen by the sha256 alone, and change nothing.
    [(damage, believed) for damage in DAMAGE for believed in (False, True) if (damage, believed) != ("longer", True)],
)
def test_a_damaged_table_of_items_is_not_believed(source, tmp_path, monkeypatch, damage, believed):
    monkeypatch.chdir(tmp_path)
    prepare(source, tmp_path, 23, 3, make_settings(), IDENTITY)
    path = tmp_path / "items.npy"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    if believed:
        forged = hashlib.sha256(path.read_bytes()).hexdigest()
        (tmp_path / "plan.json").write_bytes(_edited((tmp_path / "plan.json").read_bytes(), items_sha256=forged))
    with pytest.raises(DatasetError) as caught:
        load_plan(tmp_path)
    own_digest = believed and damage == "flipped bit"  # a whole table: only the plan's digest tells
    assert str(tmp_path / ("plan.json" if own_digest else "items.npy")) in str(caught.value)
    assert not Path("unpickled").exists()


def test_a_missing_table_of_items_is_named(source, tmp_path):
    prepare(source, tmp_path, 23, 3, make_settings(), IDENTITY)
    (tmp_path / "items.npy").unlink()
    with pytest.raises(DatasetError, match=r"items\.npy is damaged \(it cannot be read"):
        load_plan(tmp_path)


def test_a_plan_that_was_cut_off_is_made_again_and_foreign_tables_stay(source, tmp_path):
    prepare(source, tmp_path, 23, 3, make_settings(), IDENTITY)
    (tmp_path / "plan.json").unlink()
    again = prepare(source, tmp_path, 10, 4, make_settings(), IDENTITY)
    assert load_plan(tmp_path) == again and again.images == 10
    (tmp_path / "mine").mkdir()
    np.save(tmp_path / "mine" / "items.npy", np.arange(5))
    with pytest.raises(RunConflict, match=r"not empty \(items\.npy\)"):
        prepare(source, tmp_path / "mine", 23, 3, make_settings(), IDENTITY)
    assert np.load(tmp_path / "mine" / "items.npy").tolist() == [0, 1, 2, 3, 4]


def test_a_loaded_plan_is_mapped_and_cannot_be_changed(source, tmp_path):
    made = prepare(source, tmp_path, 23, 3, make_settings(), IDENTITY)
    loaded = load_plan(tmp_path)
    assert isinstance(loaded.rows.base, np.memmap) and is_items(open_store(tmp_path))
    for plan in (made, loaded):
        with pytest.raises(ValueError, match="read-only"):
            plan.rows["seed"][0] = 1


def test_the_table_is_numpys_own_format_and_the_same_on_every_machine(source, tmp_path):
    ranges = {"strength_min": 0.3, "strength_max": 0.7, "guidance_min": 1.0, "guidance_max": 3.0, "eta_min": 0.1}
    plan = plan_of(source, **ranges, eta_max=0.4, styles=("x", "y"), text_to_image=0.2)
    write_items(open_store(tmp_path), plan.rows)
    assert (tmp_path / "items.npy").read_bytes() == _npy(plan.rows)
    assert (
        hashlib.sha256(plan.rows.tobytes()).hexdigest()
        == "1cd27e89104bc975b7b932877899a3c84161797e61aa7a8e1fd39d9e4a215c5b"
    )
