"""The state that a stopped training goes on from: one safetensors file, whole or not there, and the one before it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from engine.data.files import sync_folder
from engine.detection.average import WeightAverage
from engine.errors import ModelError, RunConflict

log = logging.getLogger(__name__)

FORMAT = 1
STATE = "training-state.safetensors"


@dataclass
class Progress:
    """How far a training is. `curve`: (step, learning rate, mean of every named loss since the entry before);
    `window`: sums of the named losses since the last entry, over `count` steps."""

    step: int = 0
    seconds: float = 0.0
    curve: list[tuple[int, float, dict[str, float]]] = field(default_factory=list)
    window: dict[str, float] = field(default_factory=dict)
    count: int = 0


class StateFile:
    """Keeps weights, buffers, optimiser moments, averages and progress at `path`.

    Every random draw of a step depends on (seed, step) alone, so no random state belongs to it.

    Args:
        identity: what decides the training's outcome, by name; a state of another one is refused.
    """

    def __init__(self, path: Path, identity: dict):
        self.path = path
        self.identity = json.loads(json.dumps(identity))

    def save(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None, progress: Progress
    ) -> None:
        """Write the state. A kill at any moment leaves this state or the one before it."""
        tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
        for name, parameter in _trained(model).items():
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        if average is not None:
            tensors |= {f"average.{name}": value for name, value in average.values.items()}
        # Clones: heads may share a tensor under two names, which safetensors refuses.
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        meta = {"format": FORMAT, "identity": self.identity, "progress": vars(progress), "sha256": _sha256(tensors)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, _partial(self.path), {"state": json.dumps(meta)})
        with open(_partial(self.path), "rb") as file:
            os.fsync(file.fileno())
        if self.path.exists():
            os.replace(self.path, _previous(self.path))
        os.replace(_partial(self.path), self.path)
        sync_folder(self.path.parent)

    def load(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None
    ) -> Progress | None:
        """Put the saved state into the three and tell how far it is; None where there is no state.

        Raises:
            RunConflict: the state is of a training with other settings, data or model.
            ModelError: the files that are there are damaged.
        """
        damaged = []
        for path in (self.path, _previous(self.path)):
            if not path.exists():
                continue
            try:
                meta, tensors = _read(path)
            except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
                damaged.append(path)
                log.warning("%s is damaged (%s): it is not used", path, error)
                continue
            self._check(path, meta["identity"])
            progress = Progress(**{**meta["progress"], "curve": [tuple(entry) for entry in meta["progress"]["curve"]]})
            self._fill(path, tensors, model, optimizer, average)
            if damaged:
                log.warning("The training goes on from the state before it: %s, step %d", path, progress.step)
            return progress
        if damaged:
            raise ModelError(
                f"The training cannot go on: {', '.join(map(str, damaged))} cannot be read, and there is no other "
                "state. Remove the file to start the training again."
            )
        return None

    def _check(self, path: Path, found: dict) -> None:
        names = sorted(found.keys() | self.identity.keys())
        other = [name for name in names if found.get(name) != self.identity.get(name)]
        if other:
            told = "; ".join(f"{name} was {found.get(name)!r}, now {self.identity.get(name)!r}" for name in other)
            raise RunConflict(
                f"{path} is the state of another training: {told}. Set this back to go on with that one, or remove "
                "the file to start again."
            )

    def _fill(self, path: Path, tensors: dict[str, Tensor], model, optimizer, average) -> None:
        try:
            model.load_state_dict(_below(tensors, "model."))
        except RuntimeError as error:
            raise RunConflict(
                f"{path} is the state of another model: {str(error).splitlines()[-1].strip()}. Remove the file to "
                "start again."
            ) from None
        for name, parameter in _trained(model).items():
            for key in ("step", "exp_avg", "exp_avg_sq"):
                value = tensors.get(f"optimizer.{key}.{name}")
                if value is not None:  # AdamW keeps its count of steps on the CPU
                    optimizer.state[parameter][key] = value if key == "step" else value.to(parameter.device)
        if average is not None:
            for name, value in _below(tensors, "average.").items():
                average.values[name].copy_(value)


def remove_state(path: Path) -> None:
    """Remove the state at `path` and what belongs to it: what was trained is safe elsewhere."""
    for file in (_partial(path), _previous(path), path):
        file.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".tmp-{path.name}")


def _previous(path: Path) -> Path:
    return path.with_name(f"previous-{path.name}")


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _read(path: Path) -> tuple[dict, dict[str, Tensor]]:
    with safe_open(path, "pt") as handle:
        meta = json.loads((handle.metadata() or {})["state"])
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}
    if meta["format"] != FORMAT:
        raise ValueError(f"format {meta['format']}, not {FORMAT}")
    if _sha256(tensors) != meta["sha256"]:
        raise ValueError("its content is not what was written")
    return meta, tensors


def _sha256(tensors: dict[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
