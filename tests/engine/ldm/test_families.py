"""Every family runs the whole path; dtypes, taps, identity and memory are what they are said to be."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.adapter.train import train_adapter
from engine.config import load_settings
from engine.errors import ModelError
from engine.generation.draw import load_drawer
from engine.generation.plan import make_plan
from engine.ldm.adapt import adapt_ldm
from engine.ldm.diffusion import hash_weights, load_ldm
from engine.ldm.families import FAMILIES as FAMILY_TABLE
from engine.ldm.sampling import SampleRequest, sample
from tests.engine.ldm.conftest import FAMILIES

SAMPLER = {"turbo": "euler_trailing", "lcm": "lcm"}
LAST = {"turbo": 249, "lcm": 259}


def settings_of(family: str, *more: str):
    return load_settings(
        None,
        [
            *("adapter.steps=2", "adapter.batch_size=2", "adapter.width=32", "adapter.convs=1"),
            *("adapter.extra_levels=0", "adapter.stem=picture", "ldm.resolution=64", "ldm.device=cpu"),
            *("generation.steps=4", "generation.ignore_threshold=0.0", "generation.guidance_max=7.5"),
            *("adapt_ldm.steps=2", "adapt_ldm.batch_size=2"),
            f"generation.sampler={SAMPLER.get(family, 'ddim')}",
            *more,
        ],
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_train_generate_label(family, model_of, world_folder, tmp_path):
    settings = settings_of(family)
    card = train_adapter(world_folder, model_of(family), tmp_path, settings)
    assert card["timestep"] == LAST.get(family, 1)
    drawer = load_drawer(world_folder, model_of(family), tmp_path, settings)
    items = make_plan(drawer.dataset, 3, 0, settings, drawer.identity).items
    drawn = list(drawer.draw(items, 2))
    assert [d.image.shape for d in drawn] == [(item.height, item.width, 3) for item in items]
    assert all(len(d.boxes_xyxy) for d in drawn)  # nothing is filtered, so that a head that was never fed would show
    assert all(((d.boxes_xyxy >= 0) & (d.boxes_xyxy <= 64)).all() for d in drawn)


def test_an_adapter_of_another_noise_level_is_refused_and_an_extra_pass_cures_it(model_of, world_folder, tmp_path):
    train_adapter(world_folder, model_of("turbo"), tmp_path, settings_of("turbo", "adapter.timestep=100"))
    with pytest.raises(ModelError, match=r"t = 249.*t = 100.*adapter.timestep=249.*label_pass=extra"):
        load_drawer(world_folder, model_of("turbo"), tmp_path, settings_of("turbo"))
    extra = settings_of("turbo", "generation.label_pass=extra")
    drawer = load_drawer(world_folder, model_of("turbo"), tmp_path, extra)
    items = make_plan(drawer.dataset, 2, 0, extra, drawer.identity).items
    assert [d.image.shape for d in drawer.draw(items, 2)] == [(64, 64, 3)] * 2


def test_the_extra_pass_reads_the_finished_latents_at_its_level_and_leaves_the_image(model_of):
    ldm = load_ldm(model_of("sd1"), device="cpu")
    request = SampleRequest(3, "a red house", guidance_scale=3.0, eta=0.2)
    plain = sample(ldm, [request], 4, size=(64, 64))
    calls = []
    handle = ldm.denoiser.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    extra = sample(ldm, [request], 4, size=(64, 64), timestep=100, label_pass="extra")
    handle.remove()
    assert calls == [2, 2, 2, 2, 1]  # guidance pays a second half, the labelling call does not
    assert torch.equal(plain.images, extra.images)
    clean = (extra.features[0] - plain.features[0]).std()  # noise of t = 100 instead of t = 1
    assert 0.2 < clean < 0.5
    again = ldm.denoise(extra.features[0], torch.tensor([100]), ldm.encode_prompts([request.prompt]))
    with ldm.capture() as record:
        assert torch.equal(
            again, ldm.denoise(extra.features[0], torch.tensor([100]), ldm.encode_prompts([request.prompt]))
        )
    for a, b in zip(record.grouped(), extra.features[1:], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_draws_nearly_the_same(family, dtype, model_of, images):
    pixels = torch.from_numpy(images[:1]).permute(0, 3, 1, 2).float() / 127.5 - 1
    request = SampleRequest(1, "a red house in the sea", "", 0.5, 2.0)
    exact, half = (
        sample(
            load_ldm(model_of(family), dtype=d, device="cpu"), [request], 4, pixels, sampler=SAMPLER.get(family, "ddim")
        )
        for d in ("float32", dtype)
    )
    assert (exact.images - half.images).abs().mean() < 0.02
    assert exact.features[0].dtype == half.features[0].dtype == torch.float32
    for a, b in zip(exact.features, half.features, strict=True):
        assert torch.isfinite(b).all() and (a - b).abs().mean() < 0.1 * a.abs().mean() + 0.01


def test_noise_of_the_last_step_survives_bfloat16(model_of):
    """sqrt(1 - alpha_bar) of t = 1 is 0.04; alpha_bar itself rounds to 1 in bfloat16."""
    ldm = load_ldm(model_of("sd2"), dtype="bfloat16", device="cpu")
    latents = torch.zeros(1, 4, 16, 16)
    noisy = ldm.features(latents, 1, torch.ones_like(latents))[0]
    assert noisy.mean().item() == pytest.approx(0.0413, abs=1e-3)


def test_an_autoencoder_that_overflows_in_float16_stays_in_float32(model_of, tmp_path):
    assert load_ldm(model_of("sdxl"), dtype="float16", device="cpu").vae.dtype == torch.float32
    assert load_ldm(model_of("sdxl"), dtype="bfloat16", device="cpu").vae.dtype == torch.bfloat16
    shutil.copytree(model_of("sdxl"), tmp_path / "fixed")
    config = tmp_path / "fixed" / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "force_upcast": False}))
    assert load_ldm(tmp_path / "fixed", dtype="float16", device="cpu").vae.dtype == torch.float16


@pytest.mark.parametrize("family", FAMILIES)
def test_measured_taps_are_what_a_call_returns(family, model_of):
    for which in ("all", "down", "mid", "up"):
        ldm = load_ldm(model_of(family), device="cpu", taps=which)
        latents = torch.zeros(2, 4, 16, 24)
        levels = ldm.features(latents, 1, latents)[1:]
        assert [tuple(v.shape) for v in levels] == [(2, t.channels, 64 // t.stride, 96 // t.stride) for t in ldm.taps]
        assert 64 % ldm.alignment == 0 and ldm.alignment == max(8, *(t.stride for t in ldm.taps)) or which != "all"
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in ldm.denoiser.modules())


def test_a_transformers_parts_are_thirds_of_its_depth(model_of):
    def blocks(which):
        return load_ldm(model_of("pixart"), device="cpu", taps=which).taps[0].blocks

    assert [blocks(w) for w in ("down", "mid", "up")] == [(f"transformer_blocks.{i}",) for i in (1, 3, 5)]
    assert blocks("all") == blocks("down") + blocks("mid") + blocks("up")


def test_a_transformers_map_keeps_its_places(model_of):
    """Tokens go back to where their patch is: a change in one corner of the latent shows in that corner first."""
    ldm = load_ldm(model_of("pixart"), device="cpu", taps="down")
    latents = torch.zeros(1, 4, 16, 24)
    changed = latents.clone()
    changed[..., :2, -2:] += 3.0  # the patch at the right end of the first row
    before, after = (ldm.features(v, 1, torch.zeros_like(v))[2] for v in (latents, changed))  # the level of the tokens
    difference = (before - after).abs().sum(1)[0]
    assert divmod(int(difference.argmax()), difference.shape[1]) == (0, 11)


@pytest.mark.parametrize("family", ["sdxl", "pixart"])
def test_the_identity_covers_every_part_that_has_weights(family, model_of, tmp_path):
    folder = tmp_path / family
    shutil.copytree(model_of(family), folder)
    entry = FAMILY_TABLE[json.loads((folder / "model_index.json").read_text())["_class_name"]]
    seen = {hash_weights(folder)}
    for part in entry.weights:
        path = next((folder / part).glob("*.safetensors"))
        tensors = load_file(path)
        name = next(iter(tensors))
        save_file({**tensors, name: tensors[name] + 1}, path, {"format": "pt"})
        seen.add(hash_weights(folder))
    assert len(seen) == 1 + len(entry.weights) and len(list(folder.glob("*/*.safetensors"))) == len(entry.weights)


@pytest.mark.parametrize(("family", "method"), [("sdxl", "lora"), ("pixart", "lora"), ("pixart", "full")])
def test_an_adapted_model_loads_the_same_way_and_says_what_it_came_from(
    family, method, model_of, world_folder, tmp_path
):
    settings = settings_of(family, f"adapt_ldm.method={method}")
    record = adapt_ldm(world_folder, model_of(family), tmp_path / "out", settings)
    base, adapted = load_ldm(model_of(family), device="cpu"), load_ldm(tmp_path / "out", device="cpu")
    assert adapted.identity.weights_sha256 == record["weights_sha256"] != base.identity.weights_sha256
    assert adapted.identity.method == method
    assert adapted.identity.adapted_from["weights_sha256"] == base.identity.weights_sha256
    assert (base.identity.adapted_from, base.identity.method) == (None, None)
    changed = {
        name
        for name, p in adapted.denoiser.state_dict().items()
        if not torch.equal(p, base.denoiser.state_dict()[name])
    }
    assert changed and all(".attn" in name for name in changed) == (method == "lora")
    other = next(part for part in base.entry.weights if part.startswith("text_encoder"))
    stored = [
        next((folder / other).glob("*.safetensors")).read_bytes() for folder in (model_of(family), tmp_path / "out")
    ]
    assert stored[0] == stored[1]


def test_memory_counts_every_part(model_of):
    ldm = load_ldm(model_of("sdxl"), dtype="bfloat16", device="cpu")
    stated = ldm.memory((64, 64))
    count = sum(p.numel() for part in ("unet", "vae", "text_encoder", "text_encoder_2") for p in stated_part(ldm, part))
    assert 2 * count <= stated["weights_total"] < 2.1 * count + 4096
    features = ldm.features(torch.zeros(1, 4, 16, 16), 1, torch.zeros(1, 4, 16, 16))[1:]
    assert stated["features_per_image"] == sum(f.numel() * f.element_size() for f in features)


def stated_part(ldm, part):
    return getattr(ldm.pipeline, part).parameters()
