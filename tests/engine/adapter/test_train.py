"""Training an adapter: what stands in its folder while it trains and afterwards, and the two caches."""

import shutil
from collections import namedtuple

import pytest
import torch

from engine.adapter import cache as cache_module
from engine.adapter.adapter import CARD, WEIGHTS, build_adapter, build_reader, frame_of
from engine.adapter.cache import FromCache, build_cache
from engine.adapter.train import asked_for, train_adapter
from engine.config import load_settings
from engine.data.dataset import read_dataset
from engine.detection.journal import CURVE, EXAMPLES, PLOT
from engine.detection.samples import BatchSource, Source
from engine.detection.state import STATE
from engine.errors import RunConflict, RunFailed
from engine.ldm.diffusion import load_ldm

SIZES = ["width=32", "convs=1", "batch_size=2", "steps=4", "save_every=2", "cache_views=2", "extra_levels=1"]
BASE = [f"adapter.{size}" for size in SIZES] + ["ldm.resolution=64", "ldm.device=cpu", "adapter.stem=latent"]


def settings_with(*changes):
    return load_settings(None, [*BASE, *changes])


@pytest.fixture(scope="module")
def parts(world_folder, ldm_folder):
    """Diffusion model, adapter and batches, as training puts them together."""
    settings = settings_with()
    ldm = load_ldm(ldm_folder, device="cpu")
    torch.manual_seed(0)
    adapter = build_adapter(build_reader(settings.adapter, settings.detr, 6, ldm), ldm, 1, settings.adapter.stem)
    batches = BatchSource([Source(read_dataset(world_folder, "train"))], frame_of(ldm, 64), 2, 0, masks=True)
    return adapter, batches


class Stopped(Exception):
    pass


@pytest.mark.parametrize("kind", ["none", "latents", "features"])
def test_a_stopped_training_goes_on_to_the_same_weights_and_leaves_no_scaffold(
    kind, world_folder, ldm_folder, tmp_path, monkeypatch
):
    settings = settings_with(f"adapter.cache={kind}", "adapter.bfloat16=false", "adapter.ema_decay=0.5")
    train_adapter(world_folder, ldm_folder, tmp_path / "unbroken", settings)
    source = BatchSource if kind == "none" else cache_module.CachedBatches
    batch = source.batch

    def stopping(self, step, part=(0, 1)):
        if step == 3:
            raise Stopped
        return batch(self, step, part)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(source, "batch", stopping)
        with pytest.raises(Stopped):
            train_adapter(world_folder, ldm_folder, out, settings)
    assert (out / STATE).exists() and (out / f"cache-{kind}").exists() == (kind != "none")
    assert {CURVE} <= {path.name for path in out.iterdir()} and not (out / CARD).exists()
    if kind == "none":
        with pytest.raises(RunConflict, match="learning_rate was"):
            train_adapter(world_folder, ldm_folder, out, settings_with("adapter.learning_rate=0.5"))
    train_adapter(world_folder, ldm_folder, out, settings)
    assert (out / WEIGHTS).read_bytes() == (tmp_path / "unbroken" / WEIGHTS).read_bytes()
    assert {path.name for path in out.iterdir()} == {CARD, WEIGHTS, CURVE, PLOT, EXAMPLES}


@pytest.mark.parametrize("kind", ["latents", "features"])
def test_a_cache_gives_what_the_model_gives_and_is_used_again(kind, parts, tmp_path, monkeypatch):
    adapter, batches = parts
    cached = build_cache(tmp_path, kind, 2, adapter, batches, False, "digest")
    first = cached.batch(5)
    assert first.image_ids == [sample.image_id for sample in batches.choose(5)]
    whole = [cached.batch(5, (i, 2)) for i in range(2)]
    assert [b.image_ids[0] for b in whole] == first.image_ids
    for one, other, level in zip(*(b.pixels for b in whole), first.pixels, strict=True):
        assert torch.equal(torch.cat([one, other]), level)
    views = 2 * len(batches.banks[0].buckets[64, 64])
    assert len(cached.places) == views
    for key, (target, _) in cached.targets.items():
        sample = next(s for s in batches.banks[0].buckets[64, 64] if s.image_id == key[0])
        seed = (batches.seed * 1_000_003 + key[0]) * 1_009 + key[1]
        image, fresh = cache_module.augmented(sample, seed)
        stored = cached._target(key)
        assert torch.equal(stored.boxes_xyxy, fresh.boxes_xyxy) and torch.equal(target.labels, fresh.labels)
        assert torch.equal(stored.masks, fresh.masks)
        latents = adapter.backbone.ldm.encode_images(cache_module.to_model(image[None]))[0]
        noisy = 0.05 if kind == "latents" else 0.4  # features begin with the latents after their noise
        assert (cached._levels(key)[0].float() - latents).abs().max() < noisy * latents.abs().max()
    monkeypatch.setattr(cache_module, "write_atomically", None)  # nothing is written the second time
    again = build_cache(tmp_path, kind, 2, adapter, batches, False, "digest").batch(5)
    assert all(torch.equal(a, b) for a, b in zip(again.pixels, first.pixels, strict=True))
    with pytest.raises(TypeError):
        build_cache(tmp_path, kind, 2, adapter, batches, False, "another digest")


def test_shards_are_of_bounded_size_and_the_disk_they_need_is_known_before(parts, tmp_path, monkeypatch, caplog):
    adapter, batches = parts
    monkeypatch.setattr(cache_module, "SHARD_BYTES", 40_000)
    with caplog.at_level("INFO"):
        build_cache(tmp_path / "cache", "latents", 2, adapter, batches, False, "digest")
    shards = sorted((tmp_path / "cache").iterdir())
    total = sum(path.stat().st_size for path in shards)
    assert len(shards) > 1 and all(path.stat().st_size < 45_000 for path in shards)
    told = float(caplog.messages[-1].split("needs ")[1].split(" MB")[0]) * 1e6
    assert total - 5e4 < told < 1.2 * total + 5e4  # the masks that augmentation cuts off are counted
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(RunFailed, match="MB, but only 0.0 MB are free.*cache_views"):
        build_cache(tmp_path / "full", "latents", 2, adapter, batches, False, "digest")
    assert not (tmp_path / "full").exists()


@pytest.mark.parametrize("kind", ["none", "latents", "features"])
def test_no_gradient_reaches_the_diffusion_model_and_one_conditional_forward_is_run(kind, parts, tmp_path):
    adapter, batches = parts
    ldm, seen = adapter.backbone.ldm, []
    batch, model = batches.batch(0), adapter.train()
    if kind != "none":
        model, batch = FromCache(adapter, kind), build_cache(tmp_path, kind, 2, adapter, batches, False, "d").batch(0)
    hook = ldm.denoiser.register_forward_hook(lambda module, args, output: seen.append((len(args[0]), output)))
    sum(model(batch.pixels, batch.targets, batch.texts).values()).backward()
    hook.remove()
    assert [count for count, _ in seen] == ([] if kind == "features" else [2])  # no doubled batch for guidance
    assert not any(p.requires_grad or p.grad is not None for p in ldm.denoiser.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.reader.parameters())
    adapter.zero_grad()


def test_noise_of_training_depends_on_the_random_state_alone_and_prediction_on_the_image(parts):
    adapter, batches = parts
    pixels = batches.batch(0).pixels
    backbone = adapter.backbone.train()

    def noisy(seed):
        torch.manual_seed(seed)
        return backbone(pixels)[0]

    assert torch.equal(noisy(1), noisy(1)) and not torch.equal(noisy(1), noisy(2))
    backbone.eval()
    assert torch.equal(noisy(1), noisy(2))
    backbone.train()


def test_what_an_adapter_is_asked_for_decides_whether_it_is_trained_again():
    def asked(*overrides: str) -> dict:
        return asked_for(load_settings(None, list(overrides)))

    assert asked() == asked("generation.steps=20") == asked("generation.score_threshold=0.6", "compare.seeds=5")
    for change in ("adapter.steps=7", "detr.queries=50", "generation.sampler=lcm", "ldm.resolution=256"):
        assert asked(change) != asked()
    lcm = "generation.sampler=lcm"
    assert asked(lcm, "generation.steps=4") != asked(lcm, "generation.steps=8")
    at = "adapter.timestep=50"
    assert asked(lcm, at, "generation.steps=4") == asked(at, "generation.steps=8")
    words = "adapter.prompt=template"
    assert asked(words, "generation.domain=street") != asked(words) and asked("generation.domain=street") == asked()
