"""How the same images and boxes come out of stock diffusers: img2img, then a pass for the features, then the head."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline
from PIL import Image

from engine.data.pixels import read_pixels, resize, to_model
from engine.generation.draw import AdapterDrawer
from engine.generation.plan import PlannedItem
from engine.ldm.diffusion import draw_noise


class Stock:
    """Stock img2img on a drawer's weights, labelled by its adapter.

    Args:
        batch_size: images per call of the pipeline; all of them have the first one's strength, guidance and eta.
        through_files: whether the images go through JPEG files before they are labelled.
    """

    def __init__(self, drawer: AdapterDrawer, batch_size: int, through_files: bool = False):
        ldm = drawer.ldm
        parts = {name: getattr(ldm.pipeline, name) for name in ("vae", "text_encoder", "tokenizer", "unet")}
        self.pipeline = StableDiffusionImg2ImgPipeline(
            **parts,
            scheduler=DDIMScheduler.from_config(ldm.scheduler_config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        self.pipeline.set_progress_bar_config(disable=True)
        self.drawer, self.batch_size, self.through_files = drawer, batch_size, through_files

    def draw(self, items: Sequence[PlannedItem]) -> int:
        """Draw and label; returns the number of boxes."""
        return sum(
            self._draw_batch(items[start : start + self.batch_size]) for start in range(0, len(items), self.batch_size)
        )

    @torch.no_grad()
    def _draw_batch(self, items: Sequence[PlannedItem]) -> int:
        drawer, first = self.drawer, items[0]
        size = (first.width, first.height)
        pixels = [read_pixels(drawer.dataset, drawer.sources[item.source_image_id], size) for item in items]
        images = self.pipeline(
            [item.prompt for item in items],
            negative_prompt=[item.negative_prompt for item in items],
            image=(torch.stack(pixels) / 255).to(drawer.ldm.device, drawer.ldm.dtype),
            strength=first.strength,
            guidance_scale=first.guidance_scale,
            eta=first.eta,
            num_inference_steps=drawer.how.steps,
            generator=[torch.Generator().manual_seed(item.seed) for item in items],
            output_type="pil" if self.through_files else "pt",
        ).images
        drawn = torch.stack([_through_file(image, size) for image in images]) if self.through_files else images * 2 - 1
        latents = drawer.ldm.encode_images(drawn)
        noise = draw_noise(latents.shape[1:], [torch.Generator().manual_seed(item.seed) for item in items])
        features = drawer.ldm.features(latents, drawer.adapter.timestep, noise)
        found = drawer.adapter.detect(features, drawn)
        return sum(int((each.scores >= drawer.floor).sum()) for each in found)


def _through_file(image: Image.Image, size: tuple[int, int]) -> torch.Tensor:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    buffer.seek(0)
    return to_model(resize(Image.open(buffer).convert("RGB"), size))
