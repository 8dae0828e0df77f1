"""The samplers: which noise levels a run visits, and what happens between two of them.

All work on latents in the variance-preserving form. Timesteps and noise levels come from diffusers' own schedulers;
only the update is written here, because one batch mixes items that started at different steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, LCMScheduler, SchedulerMixin
from torch import Tensor

from engine.errors import ModelError

SAMPLERS = ("ddim", "euler_trailing", "lcm")
_PLAIN_EULER = {
    "timestep_spacing": "trailing",
    "timestep_type": "discrete",
    "interpolation_type": "linear",
    "final_sigmas_type": "zero",
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}


@dataclass(frozen=True)
class Schedule:
    """One full run: its timesteps, noisiest first, and alpha_bar of each and of what lies behind the last."""

    sampler: str
    prediction_type: str
    timesteps: tuple[int, ...]
    alphas: Tensor  # (steps + 1,) float32
    boundary: tuple[tuple[float, float], ...] = ()  # of a consistency model, a step: weights of its input and output

    @property
    def start_scale(self) -> float:
        """Of the noise that text-to-image starts from: Euler starts from its exact level, the others from one."""
        return (1 - self.alphas[0]).sqrt().item() if self.sampler == "euler_trailing" else 1.0

    def draws_noise(self, index: int, eta: float) -> bool:
        """Whether step `index` adds noise to an item: DDIM where its eta says so, LCM in all steps but the last."""
        if self.sampler == "lcm":
            return index < len(self.timesteps) - 1
        return self.sampler == "ddim" and eta > 0

    def step(self, index: Tensor, predicted: Tensor, latents: Tensor, eta: Tensor, noise: Tensor) -> Tensor:
        """Latents (B, C, h, w) one step on, from what the model predicted of them.

        Args:
            index: (B,) int64, each row's own step.
            eta: (B,) of DDIM; the other samplers have none.
            noise: (B, C, h, w) for the items that `draws_noise`, zeros for others.
        """
        alpha, target = _rows(self.alphas[index], latents), _rows(self.alphas[index + 1], latents)
        if self.prediction_type == "v_prediction":
            clean = alpha.sqrt() * latents - (1 - alpha).sqrt() * predicted
            old_noise = alpha.sqrt() * predicted + (1 - alpha).sqrt() * latents
        else:
            clean, old_noise = (latents - (1 - alpha).sqrt() * predicted) / alpha.sqrt(), predicted
        if self.sampler == "lcm":
            # Behind the last step alpha_bar is 1 and there is no noise: the clean latents themselves.
            skip, out = (_rows(weights, latents) for weights in torch.tensor(self.boundary)[index.cpu()].unbind(1))
            return target.sqrt() * (out * clean + skip * latents) + (1 - target).sqrt() * noise
        if self.sampler == "euler_trailing":
            # One Euler step of the probability flow in sigma = sqrt((1 - a) / a) is DDIM without noise.
            return target.sqrt() * clean + (1 - target).sqrt() * old_noise
        # DDIM (Song et al. 2021, eq. 12 and 16).
        variance = (1 - target) / (1 - alpha) * (1 - alpha / target)
        deviation = _rows(eta, latents) * variance.clamp(min=0).sqrt()
        direction = (1 - target - deviation.square()).clamp(min=0).sqrt() * old_noise
        return target.sqrt() * clean + direction + deviation * noise


def _rows(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1), one value a row of images or latents."""
    return values.to(like)[:, None, None, None]


def schedule_config(scheduler: SchedulerMixin) -> dict:
    """The config of a model's own scheduler, fixed to what every sampler here starts from: "leading" spacing with
    offset 1 ends at t = 1, where the paper's adapter reads, for any number of steps.

    Without the note of which values were defaults: diffusers would drop those again, the fixed ones with them.
    """
    config = {k: v for k, v in scheduler.config.items() if k != "_use_default_values"}
    fixed = {"clip_sample": False, "thresholding": False, "timestep_spacing": "leading", "steps_offset": 1}
    return {**config, **fixed}


def make_schedule(scheduler_config: dict, sampler: str, steps: int) -> Schedule:
    """The schedule of a run of `steps` on a model with this scheduler config.

    Raises:
        ModelError: more steps than the noise schedule or the distillation has.
    """
    try:
        schedule = {"ddim": _ddim, "euler_trailing": _euler, "lcm": _lcm}[sampler](scheduler_config, steps)
    except ValueError as error:  # diffusers' own limits on the number of steps
        raise ModelError(f"{steps} steps of {sampler} do not fit this model: {error}") from None
    if schedule.timesteps[0] >= scheduler_config["num_train_timesteps"]:
        raise ModelError(f"The model's noise schedule has no room for {steps} steps. Set generation.steps lower.")
    return schedule


def _ddim(config: dict, steps: int) -> Schedule:
    scheduler = DDIMScheduler.from_config(config)
    scheduler.set_timesteps(steps)
    timesteps = tuple(scheduler.timesteps.tolist())
    behind = timesteps[-1] - scheduler.config.num_train_timesteps // steps
    final = scheduler.alphas_cumprod[behind] if behind >= 0 else scheduler.final_alpha_cumprod
    last = scheduler.config.num_train_timesteps - 1
    alphas = torch.stack([*(scheduler.alphas_cumprod[min(t, last)] for t in timesteps), final])
    return Schedule("ddim", scheduler.config.prediction_type, timesteps, alphas)


def _euler(config: dict, steps: int) -> Schedule:
    scheduler = EulerDiscreteScheduler.from_config({**config, **_PLAIN_EULER})
    scheduler.set_timesteps(steps)
    # For some numbers of steps diffusers' rounding adds one more, at t = -1.
    timesteps = tuple(int(t) for t in scheduler.timesteps.tolist()[:steps])
    alphas = torch.cat([1 / (scheduler.sigmas[:steps].float().square() + 1), torch.ones(1)])
    return Schedule("euler_trailing", scheduler.config.prediction_type, timesteps, alphas)


def _lcm(config: dict, steps: int) -> Schedule:
    scheduler = LCMScheduler.from_config(config)
    scheduler.set_timesteps(steps)
    timesteps = tuple(scheduler.timesteps.tolist())
    alphas = torch.stack([*(scheduler.alphas_cumprod[t] for t in timesteps), torch.tensor(1.0)])
    boundary = tuple(scheduler.get_scalings_for_boundary_condition_discrete(t) for t in timesteps)
    return Schedule("lcm", scheduler.config.prediction_type, timesteps, alphas, boundary)
