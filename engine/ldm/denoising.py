"""Training of a denoising U-Net on cached latents: one loop for training from nothing and for adapting.

The loop is exactly resumable: every random draw of a step comes from a generator seeded with (seed, step),
and its state file holds weights, averaged weights and optimiser moments as safetensors.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDPMScheduler
from diffusers.models.attention_processor import AttnProcessor
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from engine.errors import ModelError, RunFailed
from engine.ldm.taps import capture


@dataclass(frozen=True)
class DenoisingSettings:
    """Steps, batch, and AdamW with warm-up and cosine decay."""

    steps: int
    batch_size: int = 32
    learning_rate: float = 5e-4
    warmup_steps: int = 200
    weight_decay: float = 0.01
    ema_decay: float = 0.999
    clip_norm: float = 1.0
    seed: int = 0
    bfloat16: bool = True
    save_every: int = 500


@dataclass(frozen=True)
class Batch:
    """Latents (B, C, h, w) float32, what `encode_prompts` takes (B, ...), and, for a caption loss: which rows come
    without words (B,) bool, and which words their captions hold (B, W) 0 or 1."""

    latents: Tensor
    prompts: Tensor
    wordless: Tensor | None = None
    words: Tensor | None = None


class CaptionLoss(nn.Module):
    """Which words the caption of a picture holds, read off the U-Net's own features without the caption as input.

    A large model learns from billions of captions what it draws; a small one, trained for an hour, needs this push to
    have features that know it. Each place of each tapped level gives a logit per word, and the strongest places decide
    (multiple-instance pooling by log-sum-exp), so that the knowledge sits where the object is. Used in training only:
    its weights are not part of the shipped model.
    """

    def __init__(self, channels: Sequence[int], words: int, start_step: int, weight: float):
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(1, c) for c in channels)
        self.readers = nn.ModuleList(nn.Conv2d(c, words, 1) for c in channels)
        for reader in self.readers:
            nn.init.constant_(reader.bias, -5.0)  # most places hold none of the words
        self.start_step, self.weight = start_step, weight

    def forward(self, levels: Sequence[Tensor], words: Tensor) -> Tensor:
        """levels: (B, C_i, h_i, w_i) of rows without words; words (B, W) 0 or 1 -> weighted loss."""
        total = 0.0
        for norm, reader, level in zip(self.norms, self.readers, levels, strict=True):
            pooled = torch.logsumexp(reader(norm(level.float())).flatten(2), dim=2)
            total = total + nn.functional.binary_cross_entropy_with_logits(pooled, words)
        return self.weight * total / len(levels)


class NonFiniteLoss(RunFailed):
    """The loss became NaN or infinite; the last saved state is intact."""


class DenoisingTrainer:
    """Trains `modules` (U-Net, and a text encoder if it learns too) to predict the scheduler's target.

    Args:
        unet: the denoiser.
        encode_prompts: token ids (B, L) -> states (B, L, D); differentiable if the text encoder learns.
        modules: every module whose parameters with requires_grad are trained and averaged.
        draw: generator -> Batch; all randomness from the generator.
        scheduler_config: the pipeline's scheduler config: noise schedule and prediction type.
        state_path: where the resumable state lives; None keeps none.
    """

    def __init__(
        self,
        unet: nn.Module,
        encode_prompts: Callable[[Tensor], Tensor],
        modules: dict[str, nn.Module],
        draw: Callable[[torch.Generator], Batch],
        scheduler_config: dict,
        settings: DenoisingSettings,
        state_path: Path | None = None,
        caption_loss: CaptionLoss | None = None,
    ):
        self.unet, self.encode_prompts, self.draw, self.settings = unet, encode_prompts, draw, settings
        self.caption_loss = caption_loss
        if caption_loss is not None:
            modules = {**modules, "caption_loss": caption_loss}
        self.device = next(unet.parameters()).device
        if self.device.type == "cpu":
            # The backward pass of fused attention took a third of a step on a CPU.
            unet.set_attn_processor(AttnProcessor())
        self.scheduler = DDPMScheduler.from_config(scheduler_config)
        self.parameters = {
            f"{prefix}.{name}": p
            for prefix, module in modules.items()
            for name, p in module.named_parameters()
            if p.requires_grad
        }
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.state_path, self.step, self.seconds = state_path, 0, 0.0
        self.last_caption_loss = 0.0  # unweighted, of the last step that had one
        self.curve: list[tuple[int, float]] = []  # (step, mean denoising loss since the entry before)
        if state_path is not None and state_path.exists():
            self._load_state()

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Train to `settings.steps`, or until `until()` says stop; saves the state either way."""
        settings, running = self.settings, []
        started = time.monotonic() - self.seconds
        with tqdm(total=settings.steps, initial=self.step, desc="denoising", mininterval=5) as bar:
            while self.step < settings.steps and not until():
                running.append(self._train_step())
                self.step += 1
                self.seconds = time.monotonic() - started
                bar.update()
                if self.step % 100 == 0 or self.step == settings.steps:
                    self.curve.append((self.step, sum(running) / len(running)))
                    shown = {"loss": f"{self.curve[-1][1]:.4f}"}
                    if self.caption_loss is not None:
                        shown["caption"] = f"{self.last_caption_loss:.4f}"
                    bar.set_postfix(shown)
                    running = []
                if self.step % settings.save_every == 0:
                    self._save_state()
        self._save_state()

    def averaged_weights(self) -> dict[str, Tensor]:
        """The exponentially averaged parameters, by prefixed name."""
        return self.average

    def load_average(self) -> None:
        """Put the averaged weights into the modules: what is shipped."""
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(self.average[name])

    def _train_step(self) -> float:
        settings = self.settings
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + self.step)
        batch = self.draw(generator)
        latents = batch.latents.to(self.device)
        count = self.scheduler.config.num_train_timesteps
        noise = torch.randn(latents.shape, generator=generator).to(self.device)
        timesteps = torch.randint(0, count, (len(latents),), generator=generator)
        captioned = self.caption_loss is not None and self.step >= self.caption_loss.start_step
        if captioned:  # words are read at low noise: the cube of a uniform draw puts half of these rows below an eighth
            timesteps[batch.wordless] = (timesteps[batch.wordless].float() / count).pow(3).mul(count).long()
        timesteps = timesteps.to(self.device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        target = noise
        if self.scheduler.config.prediction_type == "v_prediction":
            target = self.scheduler.get_velocity(latents, noise, timesteps)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.bfloat16), capture(self.unet) as record:
            predicted = self.unet(noisy, timesteps, self.encode_prompts(batch.prompts.to(self.device))).sample
        loss = denoising = (predicted.float() - target).square().mean()
        if captioned and batch.wordless.any():
            levels = [level[batch.wordless] for level in record.grouped()]
            caption = self.caption_loss(levels, batch.words[batch.wordless].to(self.device))
            self.last_caption_loss = caption.item() / self.caption_loss.weight
            loss = denoising + caption
        if not torch.isfinite(loss):
            raise NonFiniteLoss(f"The denoising loss is {loss.item()} at step {self.step}. Lower the learning rate.")
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), settings.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * self._rate(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(settings.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - decay)
        return denoising.item()

    def _rate(self, step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, self.settings.warmup_steps))
        return warm * (0.5 + 0.5 * torch.cos(torch.tensor(torch.pi * step / self.settings.steps)).item())

    def _save_state(self) -> None:
        if self.state_path is None:
            return
        tensors = {f"weight.{k}": p.detach() for k, p in self.parameters.items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for name, p in self.parameters.items():
            for key, value in self.optimizer.state.get(p, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        meta = {"step": self.step, "seconds": self.seconds, "curve": self.curve}
        self.state_path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.state_path.with_suffix(".partial")
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, partial, {"state": json.dumps(meta)})
        os.replace(partial, self.state_path)

    def _load_state(self) -> None:
        tensors = load_file(self.state_path)
        with safe_open(self.state_path, "pt") as handle:
            meta = json.loads(handle.metadata()["state"])
        with torch.no_grad():
            for name, p in self.parameters.items():
                if f"weight.{name}" not in tensors:
                    raise ModelError(
                        f"{self.state_path} holds the state of another training ({name} is missing). "
                        "Remove it to start again."
                    )
                p.copy_(tensors[f"weight.{name}"])
                self.average[name].copy_(tensors[f"average.{name}"])
                keys = [k for k in ("step", "exp_avg", "exp_avg_sq") if f"optimizer.{k}.{name}" in tensors]
                if keys:
                    self.optimizer.state[p] = {k: tensors[f"optimizer.{k}.{name}"] for k in keys}
        self.step, self.seconds = meta["step"], meta["seconds"]
        self.curve = [tuple(entry) for entry in meta["curve"]]
