"""The denoising loop, adapting to a folder, and the model that ships."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from engine.config import load_settings
from engine.data.world import render_scene
from engine.errors import DatasetError
from engine.ldm import embedded_folder
from engine.ldm.adapt import adapt_ldm
from engine.ldm.denoising import Batch, CaptionLoss, DenoisingSettings, DenoisingTrainer
from engine.ldm.diffusion import hash_weights, load_ldm
from engine.ldm.embedded import build_scheduler, build_unet
from engine.ldm.pretrain import reconstruction_psnr
from engine.ldm.taps import measure_taps


def trainer(state=None, steps=6) -> DenoisingTrainer:
    torch.manual_seed(0)
    unet = build_unet()
    channels = [tap.channels for tap in measure_taps(unet.config, 4)]

    def draw(generator):
        wordless = torch.tensor([True, False])
        words = torch.randint(0, 2, (2, 3), generator=generator).float()
        return Batch(
            torch.randn(2, 12, 8, 8, generator=generator), torch.randn(2, 4, 64, generator=generator), wordless, words
        )

    settings = DenoisingSettings(steps, 2, 1e-3, warmup_steps=2, save_every=3, bfloat16=False)
    caption = CaptionLoss(channels, 3, start_step=2, weight=0.2)
    return DenoisingTrainer(
        unet, lambda states: states, {"unet": unet}, draw, dict(build_scheduler().config), settings, state, caption
    )


def test_a_training_that_was_stopped_ends_with_the_same_weights(tmp_path):
    unbroken = trainer()
    unbroken.run()
    first = trainer(tmp_path / "state.safetensors")
    first.run(until=lambda: first.step == 3)
    second = trainer(tmp_path / "state.safetensors")
    assert second.step == 3
    second.run()
    for name, value in unbroken.averaged_weights().items():
        assert torch.equal(value, second.averaged_weights()[name]), name


def adaptation(*overrides):
    return load_settings(
        None, ["adapt_ldm.steps=2", "adapt_ldm.batch_size=2", "ldm.resolution=64", "ldm.device=cpu", *overrides]
    )


@pytest.mark.parametrize("method", ["full", "lora"])
def test_an_adapted_model_is_a_whole_pipeline_with_other_weights(ldm_folder, world_folder, tmp_path, method):
    shutil.copytree(world_folder, tmp_path / "data")
    for hidden in ("val", "test"):  # a picture of another split would stop the run
        for path in (tmp_path / "data" / "images").glob(f"{hidden}_*"):
            path.write_bytes(b"not a picture")
    settings = adaptation(f"adapt_ldm.method={method}", "adapt_ldm.decoder_steps=1")
    record = adapt_ldm(tmp_path / "data", ldm_folder, tmp_path / "out", settings)
    assert record["images"] == 8 and record["method"] == method
    adapted = load_ldm(tmp_path / "out", device="cpu")
    assert adapted.identity.weights_sha256 == record["weights_sha256"] != hash_weights(ldm_folder)
    assert not any("lora" in name for name, _ in adapted.denoiser.named_parameters())
    written = [path.read_text() for path in (tmp_path / "out").rglob("*.json")]
    assert not any(str(tmp_path) in text or str(ldm_folder) in text for text in written), "a path of this machine"
    StableDiffusionPipeline.from_pretrained(tmp_path / "out", safety_checker=None, requires_safety_checker=False)


def test_a_plain_folder_of_pictures_will_do_and_an_empty_one_will_not(ldm_folder, tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DatasetError, match="No training images"):
        adapt_ldm(tmp_path / "pictures", ldm_folder, tmp_path / "out", adaptation())
    Image.new("RGB", (90, 70), (200, 10, 10)).save(tmp_path / "pictures" / "one.png")
    assert adapt_ldm(tmp_path / "pictures", ldm_folder, tmp_path / "out", adaptation())["images"] == 1


def test_the_embedded_model_ships_small_and_loads_as_stock_stable_diffusion():
    folder = embedded_folder()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size < 15e6
    assert not [p for p in folder.rglob("*") if p.suffix in {".bin", ".pt", ".pkl", ".ckpt"}]
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a red house in the meadow", num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 64, 64, 3) and np.isfinite(image).all()


def test_the_embedded_autoencoder_keeps_unseen_scenes():
    vae = load_ldm("world", device="cpu").vae
    scenes = np.stack([np.asarray(render_scene(900_000_000 + i).image) for i in range(16)])
    assert reconstruction_psnr(vae, scenes) > 31


def test_the_card_shows_what_the_record_says():
    folder = embedded_folder()
    record = json.loads((folder / "training.json").read_text())
    card = (folder / "README.md").read_text()
    assert f"{record['psnr']:.1f} dB" in card and f"{record['denoiser']['steps']:,} steps" in card
