"""The samplers draw what the stock pipelines draw, and end where they are said to end."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PixArtSigmaPipeline,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)

from engine.errors import ModelError
from engine.ldm.diffusion import load_ldm
from engine.ldm.samplers import SAMPLERS, make_schedule, schedule_config
from engine.ldm.sampling import SampleRequest, last_timestep, sample
from tests.engine.ldm.conftest import SCALED

CONFIG = schedule_config(DDIMScheduler(**SCALED))
STOCK = {
    "ddim": lambda config: DDIMScheduler.from_config(
        config, timestep_spacing="leading", steps_offset=1, clip_sample=False, thresholding=False
    ),
    "euler_trailing": lambda config: EulerDiscreteScheduler.from_config(config, timestep_spacing="trailing"),
    "lcm": LCMScheduler.from_config,
}
PLAIN = {"safety_checker": None, "requires_safety_checker": False}


@pytest.mark.parametrize(
    ("family", "sampler", "steps", "guidance", "strength"),
    [
        ("sd1", "ddim", 4, 5.0, 0.5),
        ("sd2", "ddim", 4, 5.0, None),
        ("sd2", "euler_trailing", 4, 3.0, 0.5),
        ("turbo", "euler_trailing", 4, 1.0, None),
        ("turbo", "euler_trailing", 3, 2.0, 0.7),
        ("lcm", "lcm", 4, 8.0, None),
        ("lcm", "lcm", 4, 8.0, 0.8),
        ("sd1", "lcm", 3, 1.0, 0.7),
        ("sdxl", "ddim", 4, 5.0, 0.5),
        ("sdxl", "euler_trailing", 3, 1.0, None),
        ("pixart", "ddim", 4, 4.0, None),
        ("pixart", "euler_trailing", 3, 1.0, None),
    ],
)
def test_images_equal_the_stock_pipelines(family, sampler, steps, guidance, strength, model_of, images):
    expected = draw_stock(model_of(family), family, sampler, steps, guidance, strength, images)
    sources = torch.from_numpy(images[:1]).permute(0, 3, 1, 2).float() / 127.5 - 1
    request = SampleRequest(5, "a red house in the sea", "", strength or 1.0, guidance)
    ldm = load_ldm(model_of(family), device="cpu")
    got = sample(ldm, [request], steps, None if strength is None else sources, size=(64, 64), sampler=sampler)
    assert np.abs(got.images.permute(0, 2, 3, 1).numpy() / 2 + 0.5 - expected).max() < 1 / 255


def draw_stock(folder, family, sampler, steps, guidance, strength, images) -> np.ndarray:
    kinds = {
        ("sdxl", False): StableDiffusionXLPipeline,
        ("sdxl", True): StableDiffusionXLImg2ImgPipeline,
        ("pixart", False): PixArtSigmaPipeline,
        ("lcm", False): LatentConsistencyModelPipeline,
    }
    kind = kinds.get((family, strength is not None))
    if kind is None:
        kind = StableDiffusionPipeline if strength is None else StableDiffusionImg2ImgPipeline
    stock = kind.from_pretrained(folder, **({} if family in ("sdxl", "pixart") else PLAIN))
    stock.scheduler = STOCK[sampler](stock.scheduler.config)
    stock.set_progress_bar_config(disable=True)
    options = {"height": 64, "width": 64} if strength is None else {"strength": strength}
    if strength is not None:
        options["image"] = torch.from_numpy(images[:1]).permute(0, 3, 1, 2).float() / 127.5 - 1
    if family == "pixart":
        options |= {"use_resolution_binning": False, "clean_caption": False}
    return stock(
        "a red house in the sea",
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
        **options,
    ).images


@pytest.mark.parametrize(("family", "sampler"), [("lcm", "lcm"), ("sdxl", "euler_trailing"), ("pixart", "ddim")])
def test_batch_mates_do_not_change_an_item(family, sampler, model_of, images):
    ldm = load_ldm(model_of(family), device="cpu")
    requests = [
        SampleRequest(1, "a red car", "", 0.3, 2.0, 0.2),
        SampleRequest(2, "a blue fish", "a house", 0.9, 5.0),
        SampleRequest(3, "", "", 0.6, 1.0, 0.4),
    ]
    pixels = torch.from_numpy(images[:3]).permute(0, 3, 1, 2).float() / 127.5 - 1
    together = sample(ldm, requests, 5, pixels, sampler=sampler)
    for i, request in enumerate(requests):
        alone = sample(ldm, [request], 5, pixels[i : i + 1], sampler=sampler)
        torch.testing.assert_close(together.images[i], alone.images[0], atol=1e-3, rtol=0)
        for level, level_alone in zip(together.features, alone.features, strict=True):
            torch.testing.assert_close(level[i], level_alone[0], atol=1e-3, rtol=1e-3)


def test_where_samplers_end(model_of):
    ldm = load_ldm(model_of("sd2"), device="cpu")
    assert [last_timestep(ldm, s, 4) for s in SAMPLERS] == [1, 249, 259]
    assert {last_timestep(ldm, "ddim", steps) for steps in (1, 7, 20, 50, 501, 999)} == {1}


def test_what_a_folder_leaves_to_defaults_does_not_move_the_last_step():
    for scheduler in (DPMSolverMultistepScheduler(), EulerDiscreteScheduler(), DDIMScheduler(), PNDMScheduler()):
        config = schedule_config(scheduler)
        assert make_schedule(config, "ddim", 20).timesteps[-1] == 1
        assert make_schedule(config, "euler_trailing", 4).timesteps[-1] == 249
        assert DDIMScheduler.from_config(config).config.clip_sample is False


@pytest.mark.parametrize("sampler", ["ddim", "euler_trailing"])
def test_a_schedule_has_the_steps_that_are_asked_for(sampler):
    for steps in (1, 2, 3, 61, 103, 121, 500, 999):  # diffusers' rounding gives one too many for some of them
        schedule = make_schedule(CONFIG, sampler, steps)
        assert len(schedule.timesteps) == steps == len(schedule.alphas) - 1
        assert (schedule.alphas.diff() > 0).all() and schedule.timesteps[-1] >= 0


def test_more_steps_than_a_schedule_has_are_refused():
    with pytest.raises(ModelError, match="1000 steps"):
        make_schedule(CONFIG, "ddim", 1000)
    with pytest.raises(ModelError, match="51 steps of lcm"):
        make_schedule(CONFIG, "lcm", 51)
