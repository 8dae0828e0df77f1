"""Cells that are kept: drawn is what stock inpainting draws with a U-Net that was not trained for it."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLInpaintPipeline,
)
from PIL import Image

from engine.ldm.diffusion import draw_noise, load_ldm
from engine.ldm.jobs import How, Job
from engine.ldm.sampling import SampleRequest, sample
from engine.ldm.stream import Stream

WORDS = "a red house in the sea"


def cells(ldm, *boxes: tuple[int, int, int, int]) -> torch.Tensor:
    """(1, h, w) bool for pictures of 64 pixels; boxes are cells XYXY."""
    side = 64 // ldm.latent_stride
    kept = torch.zeros(1, side, side, dtype=torch.bool)
    for x0, y0, x1, y1 in boxes:
        kept[:, y0:y1, x0:x1] = True
    return kept


def to_model(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.mark.parametrize(
    ("family", "sampler", "steps", "guidance", "strength"),
    [
        ("sd1", "ddim", 10, 5.0, 0.8),
        ("sd2", "ddim", 10, 1.0, 0.5),
        ("turbo", "euler_trailing", 4, 1.0, 0.7),
        ("sdxl", "ddim", 5, 3.0, 0.8),
    ],
)
def test_images_equal_stock_inpainting(family, sampler, steps, guidance, strength, model_of, images):
    ldm = load_ldm(model_of(family), device="cpu")
    kept = cells(ldm, (2, 3, 8, 9), (12, 1, 15, 4))
    plain = {} if family == "sdxl" else {"safety_checker": None, "requires_safety_checker": False}
    kind = StableDiffusionXLInpaintPipeline if family == "sdxl" else StableDiffusionInpaintPipeline
    stock = kind.from_pretrained(model_of(family), **plain)
    fixed = {"timestep_spacing": "leading", "steps_offset": 1, "clip_sample": False, "thresholding": False}
    if sampler == "ddim":
        stock.scheduler = DDIMScheduler.from_config(stock.scheduler.config, **fixed)
    else:
        stock.scheduler = EulerDiscreteScheduler.from_config(stock.scheduler.config, timestep_spacing="trailing")
    stock.set_progress_bar_config(disable=True)
    drawn = np.kron(~kept[0].numpy(), np.ones((ldm.latent_stride,) * 2, dtype=bool))  # there white is drawn
    expected = stock(
        WORDS,
        image=to_model(images[:1]) / 2 + 0.5,
        mask_image=Image.fromarray((drawn * 255).astype(np.uint8)),
        height=64,
        width=64,
        strength=strength,
        guidance_scale=guidance,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images
    request = SampleRequest(5, WORDS, "", strength, guidance)
    got = sample(ldm, [request], steps, to_model(images[:1]), sampler=sampler, label_pass="none", kept=kept)
    assert np.abs(got.images.permute(0, 2, 3, 1).numpy() / 2 + 0.5 - expected).max() < 1 / 255


def test_kept_cells_are_at_the_noise_level_of_every_call_and_clean_at_the_end(ldm_folder, images, monkeypatch):
    ldm = load_ldm(ldm_folder, device="cpu")
    seen = []
    denoise = ldm.denoise_and_read
    monkeypatch.setattr(
        ldm,
        "denoise_and_read",
        lambda latents, timesteps, *rest: (
            seen.append((latents[0], timesteps[:1])) or denoise(latents, timesteps, *rest)
        ),
    )
    moments, kept = ldm.encode_moments(to_model(images[:1])), cells(ldm, (2, 3, 8, 9))[0]
    job = Job(0, SampleRequest(7, WORDS, "", 0.8, 3.0, eta=0.4), moments, kept)
    (finished,) = Stream(ldm, How(10, label_pass="none"), (64, 64), 1).run(iter([job]))
    generator = torch.Generator().manual_seed(7)
    clean = ldm.draw_latents(moments, [generator])
    noise = draw_noise(clean.shape[1:], [generator])
    assert len(seen) == 8
    for latents, timestep in seen:
        expected = ldm.scheduler.add_noise(clean, noise, timestep)[0]
        torch.testing.assert_close(latents[:, kept], expected[:, kept], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(finished.latents[:, kept], clean[0][:, kept])
    assert not torch.allclose(finished.latents[:, ~kept], clean[0][:, ~kept], atol=1e-2)


def test_what_one_item_keeps_changes_no_other(ldm_folder, images):
    ldm = load_ldm(ldm_folder, device="cpu")
    requests = [SampleRequest(i, WORDS, "", 0.6, 2.0, 0.2) for i in range(2)]
    plain = sample(ldm, requests, 5, to_model(images[:2]))
    kept = torch.cat([cells(ldm, (0, 0, 8, 8)), cells(ldm)])
    some = sample(ldm, requests, 5, to_model(images[:2]), kept=kept)
    assert torch.equal(plain.images[1], some.images[1]) and not torch.equal(plain.images[0], some.images[0])
