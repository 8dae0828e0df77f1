"""The settings of a training's optimisation, and its learning rate at every step."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from engine.config import as_dict
from engine.sections import AdapterSettings, DetectorSettings


@dataclass(frozen=True)
class OptimisationSettings:
    """AdamW with warm-up and a drop by ten near the end, or cosine decay; see the sections of the settings."""

    steps: int
    learning_rate: float
    weight_decay: float
    clip_norm: float  # 0: gradients are not clipped
    bfloat16: bool
    schedule: str = "step"
    drop_at: float = 0.9
    warmup_steps: int = 500
    ema_decay: float = 0.0
    save_every: int = 500

    @classmethod
    def of(cls, section: AdapterSettings | DetectorSettings, steps_factor: float = 1.0) -> OptimisationSettings:
        """From a section of the settings, with so many times its steps; what it does not say is as above."""
        values = as_dict(section)
        known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        return cls(**{**known, "steps": round(section.steps * steps_factor)})

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        warmup = min(self.warmup_steps, self.steps // 20)
        warm = min(1.0, (step + 1) / max(1, warmup))
        if self.schedule == "cosine":
            return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.learning_rate * warm * (0.1 if step >= int(self.steps * self.drop_at) else 1.0)
