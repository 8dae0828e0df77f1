"""The embedded model and a real adapter: the same bytes however the work is cut up, and in whatever memory there is."""

import dataclasses
import logging

import numpy as np
import pytest
import torch
from conftest import result

from engine.adapter.train import train_adapter
from engine.config import load_settings
from engine.errors import ConfigError, DatasetError, RunFailed
from engine.generation.draw import load_drawer
from engine.generation.plan import make_plan
from engine.generation.run import generate

ITEMS = 11


def settings_of(*more):
    return load_settings(
        None,
        [
            *("adapter.steps=2", "adapter.batch_size=2", "adapter.width=32", "adapter.convs=1"),
            *("adapter.stem=picture", "ldm.resolution=64", "ldm.device=cpu"),
            *("generation.steps=4", "generation.strength_min=0.25", "generation.strength_max=1.0"),
            *("generation.guidance_min=0.0", "generation.guidance_max=3.0", "generation.rows_per_call=4"),
            *("generation.score_threshold=0.0", "generation.ignore_threshold=0.0", "generation.keep_negatives=true"),
            *more,
        ],
    )


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, world_folder):
    out = tmp_path_factory.mktemp("adapter")
    train_adapter(world_folder, "world", out, settings_of())
    return out


@pytest.fixture(scope="module")
def loaded(adapter, world_folder):
    return load_drawer(world_folder, "world", adapter, settings_of())


@pytest.fixture
def drawer(loaded):
    loaded._room = type(loaded._room)()
    return loaded


@pytest.fixture(scope="module")
def items(loaded):
    """Img2img and text-to-image, with guidance and without, of two sizes."""
    planned = make_plan(loaded.dataset, ITEMS, 3, settings_of(), loaded.identity).items
    assert 0 < sum(item.guidance_scale > 1 for item in planned) < ITEMS
    changed = [dataclasses.replace(item, width=96) if item.item % 3 == 0 else item for item in planned]
    return [dataclasses.replace(item, mode="text_to_image") if item.item % 4 == 0 else item for item in changed]


def arrays(drawn) -> list:
    return [(each.image, each.boxes_xyxy, each.scores, each.category_ids) for each in drawn]


def same_bits(a, b) -> bool:
    return all(np.array_equal(x, y) for one, two in zip(a, b, strict=True) for x, y in zip(one, two, strict=True))


@pytest.fixture(scope="module")
def expected(loaded, items):
    drawn = arrays(loaded.draw(items, 1))
    assert [image.shape for image, *_ in drawn] == [(item.height, item.width, 3) for item in items]
    assert all(len(boxes) for _, boxes, *_ in drawn)
    return drawn


def test_any_number_in_flight_and_any_neighbours_give_the_same_bits(drawer, items, expected):
    for batch_size in (4, 7):
        assert same_bits(expected, arrays(drawer.draw(items, batch_size)))
    apart = [arrays(drawer.draw(items[start : start + 5], 4)) for start in range(0, ITEMS, 5)]
    assert same_bits(expected, [each for part in apart for each in part])


def test_every_call_of_every_part_gets_the_same_number_of_rows(drawer, items):
    parts = {"denoiser": drawer.ldm.denoiser, "encoder": drawer.ldm.vae.encoder, "decoder": drawer.ldm.vae.decoder}
    parts |= {"text": drawer.ldm.pipeline.text_encoder, "neck": drawer.adapter.reader.neck}
    seen = {name: set() for name in parts}

    def watch(name):
        def hook(module, args, kwargs, output):
            first = kwargs.get("input_ids", args[0] if args else None)
            seen[name].add(len(next(iter(first.values())) if isinstance(first, dict) else first))

        return parts[name].register_forward_hook(hook, with_kwargs=True)

    handles = [watch(name) for name in parts]
    drawer._encoder._known.clear()
    drawer.ldm._prompt_cache.clear()
    assert len(list(drawer.draw(items, 3))) == ITEMS
    for handle in handles:
        handle.remove()
    assert seen == dict.fromkeys(parts, {4})


def test_rows_per_call_change_a_pixel_by_one_level_at_most(drawer, items, expected, monkeypatch):
    for rows in (1, 8):
        monkeypatch.setattr(drawer, "rows", rows)
        for (image, *_), (other, *_) in zip(arrays(drawer.draw(items, 8)), expected, strict=True):
            assert np.abs(image.astype(int) - other).max() <= 1


def test_batch_sizes_shard_sizes_and_workers_change_no_byte(world_folder, adapter, tmp_path):
    results = []
    for batch_size, shard_size, workers in ((1, 50, 1), (4, 5, 1), (7, 5, 3)):
        settings = settings_of(f"generation.batch_size={batch_size}", f"generation.shard_size={shard_size}")
        out = tmp_path / f"{len(results)}"
        generate(world_folder, "world", adapter, out, ITEMS, 3, settings, workers)
        results.append(result(out))
    assert len(results[0]) == ITEMS + 2
    assert results[0]["annotations.json"] == results[1]["annotations.json"] == results[2]["annotations.json"]
    images = [{name: sha for name, sha in each.items() if name.endswith("jpg")} for each in results]
    assert images[0] == images[1] == images[2]


def test_rows_per_call_and_the_share_of_guidance_are_part_of_the_plan_and_batch_size_is_not(loaded):
    def digest(*more):
        return make_plan(loaded.dataset, 3, 1, settings_of(*more), loaded.identity).digest

    assert digest() == digest("generation.batch_size=3")
    assert len({digest(), digest("generation.rows_per_call=2"), digest("generation.guidance_share=0.5")}) == 3


def test_an_unreadable_source_fails_its_items_alone(drawer, items, expected, monkeypatch):
    broken = items[1].source_image_id
    read = drawer._read

    def reads(key):
        if key[0] == broken:
            raise DatasetError("the file is cut off")
        return read(key)

    monkeypatch.setattr(drawer, "_read", reads)
    drawer._encoder._known.clear()
    drawn = list(drawer.draw(items, 4))
    failed = [isinstance(each, Exception) for each in drawn]
    assert failed == [item.source_image_id == broken and item.mode == "img2img" for item in items] and any(failed)
    whole = [each for each, bad in zip(drawn, failed, strict=True) if not bad]
    assert same_bits(arrays(whole), [each for each, bad in zip(expected, failed, strict=True) if not bad])


def test_a_text_that_cannot_be_encoded_fails_its_item_alone(drawer, items, expected):
    drawer.ldm._prompt_cache.clear()
    drawn = list(drawer.draw([items[0], dataclasses.replace(items[1], prompt="half a character: \ud800"), items[2]], 4))
    assert [isinstance(each, Exception) for each in drawn] == [False, True, False]
    assert same_bits(arrays([drawn[0], drawn[2]]), [expected[0], expected[2]])


def test_an_error_of_the_settings_ends_the_run(drawer, items, monkeypatch):
    def reads(key):
        raise ConfigError("a matter of the run")

    monkeypatch.setattr(drawer, "_read", reads)
    drawer._encoder._known.clear()
    with pytest.raises(ConfigError, match="matter of the run"):
        list(drawer.draw(items, 4))


class TooLarge:
    """A denoiser's memory: calls of more rows do not fit, and the first `spikes` calls do not either."""

    def __init__(self, rows: int, spikes: int = 0):
        self.rows, self.left = rows, spikes

    def __call__(self, module, inputs):
        if len(inputs[0]) > self.rows or self.left > 0:
            self.left -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nmore of it")


@pytest.fixture
def memory(drawer):
    handles = []
    yield lambda *how: handles.append(drawer.ldm.denoiser.register_forward_pre_hook(TooLarge(*how)))
    for handle in handles:
        handle.remove()


def test_out_of_memory_begins_again_with_fewer_in_flight_and_the_same_bits(drawer, items, expected, memory, caplog):
    memory(4, 1)
    with caplog.at_level(logging.WARNING):
        assert same_bits(expected, arrays(drawer.draw(items, 4)))
    assert [text for text in caplog.messages if "4 images in flight: it goes on with 2" in text]
    assert drawer._room.in_flight == 2 and drawer._room.rows is None


def test_at_one_in_flight_calls_get_fewer_rows_and_a_warning_says_what_that_means(
    drawer, items, expected, memory, caplog
):
    memory(1)
    with caplog.at_level(logging.WARNING):
        drawn = arrays(drawer.draw(items, 4))
    assert any("4 rows per call: it goes on with 2" in text and "last digits" in text for text in caplog.messages)
    assert (drawer._room.in_flight, drawer._room.rows) == (1, 1)
    for (image, *_), (other, *_) in zip(drawn, expected, strict=True):
        assert np.abs(image.astype(int) - other).max() <= 1


def test_no_memory_for_a_source_is_no_failure_of_its_item(drawer, items, expected, monkeypatch):
    read, short = drawer._read, [items[1].source_image_id]

    def reads(key):
        if key[0] in short:
            short.clear()
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
        return read(key)

    monkeypatch.setattr(drawer, "_read", reads)
    drawer._encoder._known.clear()
    assert same_bits(expected, arrays(drawer.draw(items, 4)))
    assert not short and drawer._room.in_flight == 2


def test_memory_for_not_even_one_row_is_no_failure_of_an_item(drawer, items, memory):
    memory(0)
    with pytest.raises(RunFailed, match="single image and one row per call.*CUDA out of memory"):
        list(drawer.draw(items, 4))


def test_pixels_that_are_not_finite_fail_their_item(drawer, items, monkeypatch):
    decode = drawer.ldm.decode

    def decodes(latents):
        images = decode(latents)
        images[0, 0, 3, 3] = float("nan")
        return images

    monkeypatch.setattr(drawer.ldm, "decode", decodes)
    drawn = list(drawer.draw(items[:2], 4))
    assert [isinstance(each, ValueError) for each in drawn] == [True, False]
