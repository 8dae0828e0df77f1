import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

from engine.errors import ModelError
from engine.ldm.diffusion import LatentDiffusion, LdmIdentity, load_ldm
from engine.ldm.pretrain import to_pixels
from engine.ldm.sampling import SampleRequest, sample


@pytest.fixture(scope="module")
def folder(ldm_folder):
    return ldm_folder


@pytest.fixture(scope="module")
def ldm(folder) -> LatentDiffusion:
    return load_ldm(folder, device="cpu")


def as_bytes(images: torch.Tensor) -> np.ndarray:
    return ((images + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).numpy().astype(np.int16)


@pytest.mark.parametrize(
    ("strength", "guidance", "eta"), [(0.5, 3.0, 0.0), (0.8, 7.5, 0.3), (0.5, 1.0, 0.4), (1.0, 0.0, 0.0)]
)
def test_images_equal_stock_img2img(folder, ldm, images, strength, guidance, eta):
    stock = StableDiffusionImg2ImgPipeline.from_pretrained(
        folder, safety_checker=None, requires_safety_checker=False, image_encoder=None
    )
    stock.scheduler = DDIMScheduler.from_config(stock.scheduler.config)
    stock.set_progress_bar_config(disable=True)
    pixels = to_pixels(images[:1])
    expected = stock(
        "a red house in the sea",
        image=pixels,
        strength=strength,
        guidance_scale=guidance,
        eta=eta,
        num_inference_steps=10,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images
    request = SampleRequest(5, "a red house in the sea", "", strength, guidance, eta)
    got = sample(ldm, [request], 10, sources=pixels)
    assert np.abs(got.images.permute(0, 2, 3, 1).numpy() / 2 + 0.5 - expected).max() < 1 / 255


def test_text_to_image_equals_stock(folder, ldm):
    stock = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    stock.set_progress_bar_config(disable=True)
    expected = stock(
        "a blue fish",
        num_inference_steps=6,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
    ).images
    got = sample(ldm, [SampleRequest(3, "a blue fish", guidance_scale=4.0)], 6, size=(64, 64))
    assert np.abs(got.images.permute(0, 2, 3, 1).numpy() / 2 + 0.5 - expected).max() < 1 / 255


def test_batch_mates_do_not_change_an_item(ldm, images):
    requests = [
        SampleRequest(1, "a red car", "", 0.3, 2.0, 0.2),
        SampleRequest(2, "a blue fish", "a house", 0.9, 5.0, 0.0),
        SampleRequest(3, "", "", 0.6, 1.0, 0.4),
    ]
    pixels = to_pixels(images[:3])
    together = sample(ldm, requests, 10, sources=pixels)
    for i, request in enumerate(requests):
        alone = sample(ldm, [request], 10, sources=pixels[i : i + 1])
        assert np.abs(as_bytes(together.images)[i] - as_bytes(alone.images)[0]).max() <= 1
        for level, level_alone in zip(together.features, alone.features, strict=True):
            torch.testing.assert_close(level[i], level_alone[0], atol=1e-3, rtol=1e-3)


def test_features_are_those_of_the_conditional_half(ldm, images):
    """A guided item's features come from its own prompt; the negative prompt only changes the image."""
    pixels = to_pixels(images[:1])
    guided = sample(ldm, [SampleRequest(1, "a red car", "a fish", 0.1, 5.0)], 10, sources=pixels)
    plain = sample(ldm, [SampleRequest(1, "a red car", "", 0.1, 1.0)], 10, sources=pixels)
    # strength 0.1 of 10 steps is one call: both see the same noisy latent, so the conditional features agree.
    for a, b in zip(guided.features, plain.features, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(guided.images, plain.images)


def test_last_step_must_be_at_the_adapters_noise_level(ldm, images):
    pixels = to_pixels(images[:1])
    sample(ldm, [SampleRequest(1)], 10, sources=pixels, timestep=1)
    with pytest.raises(ModelError, match="t = 1, but the adapter was trained at t = 50"):
        sample(ldm, [SampleRequest(1)], 10, sources=pixels, timestep=50)


def test_hostile_and_broken_folders_are_refused(folder, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    with pytest.raises(ModelError, match="model_index.json"):
        load_ldm(tmp_path / "nowhere", device="cpu")
    with pytest.raises(ModelError, match="revision"):
        load_ldm("owner/name", device="cpu")

    foreign = tmp_path / "foreign"
    shutil.copytree(folder, foreign)
    index = (foreign / "model_index.json").read_text()
    (foreign / "model_index.json").write_text(index.replace("UNet2DConditionModel", "MyOwnUNet"))
    with pytest.raises(ModelError, match="MyOwnUNet"):
        load_ldm(foreign, device="cpu")

    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_in.weight"][0] = float("nan")
    save_file(tensors, weights)
    with pytest.raises(ModelError, match="not finite"):
        load_ldm(broken, device="cpu")

    pickled = tmp_path / "pickled"
    shutil.copytree(folder, pickled)
    marker = tmp_path / "PWNED"
    (pickled / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(_Hostile(marker), pickled / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_ldm(pickled, device="cpu")
    assert not marker.exists()


class _Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_identity_follows_the_weights(folder, ldm):
    assert isinstance(ldm.identity, LdmIdentity)
    assert load_ldm(folder, device="cpu").identity == ldm.identity
    assert len(ldm.identity.weights_sha256) == 64
