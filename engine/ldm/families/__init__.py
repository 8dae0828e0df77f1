"""The families of diffusion models, and what a folder of each must hold.

A family is a module with the stock classes `PIPELINE` and `DENOISER`, and the functions `assemble(parts, index)`,
`check(pipeline)`, `encode(pipeline, texts, device) -> Conditioning`, `blank(config) -> Conditioning` (one row of the
right shapes) and `predict(denoiser, latents, timesteps, conditioning, stride, timestep_cond)`. To add one: write that
module, and name it here.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

SCHEDULERS = (  # those of the discrete noise schedule that the samplers here are made for; no flow matching, no EDM
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
    "TCDScheduler",
)
_CLIP_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")


@dataclass(frozen=True)
class Entry:
    """What a model folder of one family holds: by part, the only classes that it may name. Nothing of a folder's own
    choosing is imported."""

    module: str
    denoiser: str
    weights: dict[str, tuple[str, ...]]  # in the order in which they are hashed
    others: dict[str, tuple[str, ...]]

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        return {**self.weights, **self.others}

    def load(self) -> ModuleType:
        return importlib.import_module(f"engine.ldm.families.{self.module}")


STABLE_DIFFUSION = Entry(
    module="stable_diffusion",
    denoiser="unet",
    weights={
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL", "AutoencoderTiny"),
        "text_encoder": ("CLIPTextModel",),
    },
    others={"tokenizer": _CLIP_TOKENIZERS, "scheduler": SCHEDULERS},
)
STABLE_DIFFUSION_XL = Entry(
    module="stable_diffusion_xl",
    denoiser="unet",
    weights={
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL", "AutoencoderTiny"),
        "text_encoder": ("CLIPTextModel",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
    },
    others={"tokenizer": _CLIP_TOKENIZERS, "tokenizer_2": _CLIP_TOKENIZERS, "scheduler": SCHEDULERS},
)
PIXART_SIGMA = Entry(
    module="pixart_sigma",
    denoiser="transformer",
    weights={
        "transformer": ("PixArtTransformer2DModel",),
        "vae": ("AutoencoderKL",),
        "text_encoder": ("T5EncoderModel",),
    },
    others={"tokenizer": ("T5Tokenizer", "T5TokenizerFast"), "scheduler": SCHEDULERS},
)

FAMILIES: dict[str, Entry] = {  # by the pipeline class that model_index.json names
    "StableDiffusionPipeline": STABLE_DIFFUSION,
    "StableDiffusionImg2ImgPipeline": STABLE_DIFFUSION,
    "LatentConsistencyModelPipeline": STABLE_DIFFUSION,
    "StableDiffusionXLPipeline": STABLE_DIFFUSION_XL,
    "StableDiffusionXLImg2ImgPipeline": STABLE_DIFFUSION_XL,
    "PixArtSigmaPipeline": PIXART_SIGMA,
}
