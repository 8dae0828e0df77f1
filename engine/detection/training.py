"""The one training loop of adapters and detectors: one process or many, stopped and gone on with at any step."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object, send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from engine.cores import usable_cores
from engine.detection.average import WeightAverage
from engine.detection.journal import Journal
from engine.detection.processes import joined
from engine.detection.samples import Batch
from engine.detection.schedule import OptimisationSettings
from engine.detection.state import Progress, StateFile
from engine.errors import ConfigError, RunFailed

_MAX_LOADERS = 4  # processes that prepare batches beside a GPU


class Batches(Protocol):
    """Where batches come from; each depends on (seed, step) alone. `part` (i, n) asks for a process's share."""

    seed: int
    batch_size: int

    def batch(self, step: int, part: tuple[int, int] = (0, 1)) -> Batch: ...


@dataclass(frozen=True)
class TrainingRecord:
    """Loss curve as (step, mean loss since the entry before) and wall seconds."""

    curve: tuple[tuple[int, float], ...]
    seconds: float


def fit(
    model: nn.Module,
    batches: Batches,
    settings: OptimisationSettings,
    name: str,
    device: torch.device | None = None,
    state: Path | None = None,
    digest: str = "",
    journal: Journal | None = None,
    loaders: int | None = None,
) -> TrainingRecord:
    """Minimise the sum of the losses that `model(pixels, targets, texts)` names.

    Every random draw depends on (seed, step) alone, and the caller's random state stays as it is. Under `accelerate
    launch` every process takes its part of each batch, gradients are averaged, and the main process alone writes.
    With an average of the weights that is what the model holds in the end.

    Args:
        device: None: where the model is.
        state: a file for the state that a stopped training goes on from; it is left there for the caller to remove
            once what was trained is safe (`remove_state`).
        digest: of all that decides the outcome beside the settings; a state with another one is refused.
        journal: writes curves and examples as the training goes.
        loaders: processes that prepare batches ahead; None: some beside a GPU, none on a CPU, which has no time to
            spare.

    Raises:
        RunFailed: a loss or gradient is not finite (names step and images), or the GPU's memory is not enough.
        RunConflict, ModelError: the state is of another training, or damaged.
        ConfigError: the batch does not divide by the number of processes.
    """
    device = device if device is not None else next(model.parameters()).device
    with joined(device, settings.bfloat16) as accelerator:
        cuda = [accelerator.device] if accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            training = _Training(accelerator, model, batches, settings, name)
            training.keep(state, digest, journal)
            return training.run(_loaders_for(accelerator) if loaders is None else loaders)


class _Training:
    def __init__(
        self, accelerator: Accelerator, model: nn.Module, batches: Batches, settings: OptimisationSettings, name: str
    ):
        self.accelerator, self.batches, self.settings, self.name = accelerator, batches, settings, name
        if batches.batch_size % accelerator.num_processes:
            raise ConfigError(
                f"{name}: a batch of {batches.batch_size} does not divide by {accelerator.num_processes} processes. "
                "Set batch_size to a multiple of their number."
            )
        self.part = (accelerator.process_index, accelerator.num_processes)
        self.model = model.to(accelerator.device).train()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.average = WeightAverage(model, settings.ema_decay) if settings.ema_decay > 0 else None
        self.progress, self.state, self.journal = Progress(), None, None

    def keep(self, state: Path | None, digest: str, journal: Journal | None) -> None:
        """Go on from a state if there is one; from now on save states and write the journal."""
        if state is not None:
            identity = dataclasses.asdict(self.settings) | {"data and model": digest}
            identity |= {"batch_size": self.batches.batch_size, "seed": self.batches.seed}
            del identity["save_every"]  # decides nothing
            self.state = StateFile(state, identity)
            self.progress = self.state.load(self.model, self.optimizer, self.average) or self.progress
        self.journal = journal if self.accelerator.is_main_process else None

    def run(self, loaders: int) -> TrainingRecord:
        settings, progress = self.settings, self.progress
        every = max(1, min(settings.steps // 50, 100))
        first, began = progress.step, time.monotonic()
        earlier = progress.seconds
        runner = self.accelerator.prepare_model(self.model)
        try:
            with tqdm(
                total=settings.steps,
                initial=first,
                desc=self.name,
                mininterval=5,
                disable=not self.accelerator.is_main_process,
            ) as bar:
                for step, batch in enumerate(_loaded(self.batches, first, settings.steps, self.part, loaders), first):
                    loss = self._guarded_step(runner, step, batch)
                    progress.step, progress.seconds = step + 1, earlier + time.monotonic() - began
                    rate = (step + 1 - first) * self.batches.batch_size / (time.monotonic() - began)
                    bar.set_postfix_str(
                        f"loss {loss:.3f}, rate {settings.rate_at(step):.1e}, {rate:.0f} images/s", refresh=False
                    )
                    bar.update()
                    last = step + 1 == settings.steps
                    if (step + 1) % every == 0 or last:
                        self._close_window(last)
                    if (step + 1) % settings.save_every == 0 or last:
                        self._save()
        finally:
            self.accelerator.unwrap_model(runner, keep_fp32_wrapper=False)
        if self.average is not None:
            self.model.load_state_dict(self.average.values)
        if self.accelerator.num_processes > 1:
            for value in self.model.state_dict().values():  # running statistics are each process's own
                broadcast(value, from_process=0)
        return TrainingRecord(tuple((at, losses["loss"]) for at, _, losses in progress.curve), progress.seconds)

    def _guarded_step(self, runner: nn.Module, step: int, batch: Batch) -> float:
        try:
            return self._step(runner, step, batch)
        except torch.OutOfMemoryError as error:
            ids = ", ".join(map(str, batch.image_ids))
            raise RunFailed(
                f"{self.name}: the GPU's memory was not enough at step {step} for {len(batch.image_ids)} images a "
                f"process (with the ids {ids}). Lower batch_size (now {self.batches.batch_size}), the working "
                f"resolution, or the head's width; bfloat16 is {'on' if self.settings.bfloat16 else 'off'}. "
                f"{self._what_is_kept()}"
            ) from error

    def _step(self, runner: nn.Module, step: int, batch: Batch) -> float:
        """One step; the mean loss over all processes."""
        device, settings = self.accelerator.device, self.settings
        seed_all = torch.default_generator.manual_seed if device.type == "cpu" else torch.manual_seed
        seed_all(((self.batches.seed * 9_176_263 + step) * 1_009 + self.part[0]) % 2**63)  # for the model's own noise
        pixels = send_to_device(batch.pixels, device)
        losses = runner(pixels, [target.to(device) for target in batch.targets], batch.texts)
        total = sum(losses.values())
        mean = self.accelerator.reduce(total.detach(), "mean").item()
        self._check_finite("loss", mean, step, batch)
        self.accelerator.backward(total)
        norm = self.accelerator.clip_grad_norm_(self.parameters, settings.clip_norm or math.inf).item()
        self._check_finite("size of the gradient", norm, step, batch)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate_at(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.model, step)
        self._add_to_window(mean, losses)
        return mean

    def _check_finite(self, what: str, value: float, step: int, batch: Batch) -> None:
        if math.isfinite(value):
            return
        images = gather_object(list(batch.image_ids))
        raise RunFailed(
            f"{self.name}: the {what} is {value} at step {step}, on a batch of the images with the ids "
            f"{', '.join(map(str, sorted(set(images))))}. Look at them for broken boxes with `de validate`, or lower "
            f"the learning rate (now {self.settings.learning_rate}). {self._what_is_kept()}"
        )

    def _what_is_kept(self) -> str:
        if self.state is None or not self.state.path.exists():
            return "No state was saved yet."
        return f"The last good state is kept in {self.state.path}: the same command goes on from there."

    def _add_to_window(self, mean: float, losses: dict[str, Tensor]) -> None:
        """Sums since the last entry of the curve; the parts of the loss are this process's own."""
        window, parts = self.progress.window, {} if len(losses) == 1 else losses
        for key, value in {"loss": mean, **{name: part.item() for name, part in parts.items()}}.items():
            window[key] = window.get(key, 0.0) + value
        self.progress.count += 1

    def _close_window(self, last: bool) -> None:
        progress = self.progress
        means = {name: value / progress.count for name, value in progress.window.items()}
        progress.curve.append((progress.step, self.settings.rate_at(progress.step - 1), means))
        progress.window, progress.count = {}, 0
        if self.journal is not None:
            self.journal.write(self.name, progress.curve, self._show_averaged, last)

    def _show_averaged(self, show) -> object:
        """`show()` with the weights that would be kept now, in evaluation mode."""
        self.model.eval()
        try:
            if self.average is None:
                return show()
            with self.average.applied(self.model):
                return show()
        finally:
            self.model.train()

    def _save(self) -> None:
        if self.state is not None and self.accelerator.is_main_process:
            self.state.save(self.model, self.optimizer, self.average, self.progress)


class _Steps:
    """Batches by step, as a DataLoader's dataset."""

    def __init__(self, batches: Batches, part: tuple[int, int]):
        self.batches, self.part = batches, part

    def __getitem__(self, step: int) -> Batch:
        return self.batches.batch(step, self.part)


def _loaded(batches: Batches, first: int, end: int, part: tuple[int, int], loaders: int) -> Iterator[Batch]:
    """The process's part of every batch, in order, prepared ahead by so many processes."""
    if first >= end:
        return iter(())
    steps = range(first, end)
    return iter(DataLoader(_Steps(batches, part), None, sampler=steps, num_workers=loaders, collate_fn=_as_it_is))


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _loaders_for(accelerator: Accelerator) -> int:
    if accelerator.device.type != "cuda":
        return 0
    cores = usable_cores()
    share = cores // accelerator.num_processes
    return 0 if share <= 2 else min(_MAX_LOADERS, share - 1)
