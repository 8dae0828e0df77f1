"""Continuous batching: images of one size stream through the denoiser, each at its own step.

A call of the denoiser takes rows of whichever items have one waiting: an item joins as soon as another has left, and
nobody waits for a batch to end. With classifier-free guidance an item has two rows a step, which may go in two calls.

On one kind of processor a row's last digits depend on how many rows its call has, and on nothing else of the call. With
`rows_per_call` every call has exactly so many, the last row repeated where there are fewer: an item's pixels are
then the same bytes whatever else was drawn, in whatever order, by however many processes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.ldm.diffusion import LatentDiffusion, draw_noise
from engine.ldm.jobs import Finished, How, Job, SampleRequest, check_last_step
from engine.ldm.samplers import make_schedule

CONDITIONAL, UNCONDITIONAL = 0, 1


@dataclass
class _Item:
    job: Job
    place: int  # of its latents in the stream's table
    generator: torch.Generator
    index: int  # of its step
    guided_until: int
    rows: int = 0  # that its step still waits for
    source: tuple[Tensor, Tensor] | None = None  # its latents and the noise they began with, for cells that are kept
    finished: Tensor | None = None  # latents, while the extra pass reads them
    features: list[Tensor] = field(default_factory=list)


class Stream:
    """Draws jobs of one size, in the order in which they finish.

    Args:
        size: (width, height) in pixels.
        in_flight: how many jobs are under way at a time.

    Raises:
        ModelError: with last_step, the sampler's last step is at another noise level than the adapter's.
    """

    def __init__(self, ldm: LatentDiffusion, how: How, size: tuple[int, int], in_flight: int):
        self.ldm, self.how = ldm, how
        self.schedule = make_schedule(ldm.scheduler_config, how.sampler, how.steps)
        if how.label_pass == "last_step":
            check_last_step(self.schedule.timesteps[-1], how.timestep)
        shape = (ldm.latent_channels, size[1] // ldm.latent_stride, size[0] // ldm.latent_stride)
        self._latents = torch.zeros(in_flight, *shape, device=ldm.device)
        self._predicted = torch.zeros(2, in_flight, *shape, device=ldm.device)
        self._free = deque(range(in_flight))
        self._queue: deque[tuple[_Item, int]] = deque()  # items and which of their halves

    @torch.no_grad()
    def run(self, jobs: Iterator[Job]) -> Iterator[Finished]:
        """Draw all; a job is asked for when there is a place for it."""
        more = True
        while True:
            while more and self._free:
                job = next(jobs, None)
                if job is None:
                    more = False
                else:
                    self._begin(job)
            if not self._queue:
                return
            yield from self._call(more)

    def _begin(self, job: Job) -> None:
        request, schedule, steps = job.request, self.schedule, self.how.steps
        generator = torch.Generator().manual_seed(request.seed)
        if job.moments is None:
            start = 0
            latents = draw_noise(self._latents.shape[1:], [generator]).to(self._latents) * schedule.start_scale
        else:
            start = steps - max(1, min(int(steps * request.strength), steps))
            clean = self.ldm.draw_latents(job.moments, [generator]).to(self._latents)
            noise = draw_noise(clean.shape[1:], [generator]).to(clean)
            level = schedule.alphas[start].to(clean)
            latents = level.sqrt() * clean + (1 - level).sqrt() * noise
        item = _Item(job, self._free.popleft(), generator, start, self._guided_until(request, start))
        if job.kept is not None:
            item.source = (clean[0], noise[0])
        self._latents[item.place] = latents[0]
        self._wait(item)

    def _guided_until(self, request: SampleRequest, start: int) -> int:
        if self.ldm.embeds_guidance or request.guidance_scale <= 1:
            return start
        return start + math.ceil(self.how.guidance_share * (self.how.steps - start) - 1e-9)

    def _wait(self, item: _Item) -> None:
        halves = (CONDITIONAL, UNCONDITIONAL) if item.index < item.guided_until else (CONDITIONAL,)
        item.rows = len(halves)
        self._queue.extend((item, half) for half in halves)

    def _call(self, more: bool) -> Iterator[Finished]:
        if not more:  # the longest way first, so that all end together and calls stay full
            self._queue = deque(sorted(self._queue, key=lambda row: row[0].index))
        rows = [self._queue.popleft() for _ in range(min(self.how.rows_per_call or len(self._queue), len(self._queue)))]
        self._predict(rows)
        for item, _ in rows:
            item.rows -= 1
        ready = list({id(item): item for item, _ in rows if not item.rows}.values())
        labelled = {item.place for item in ready if item.finished is not None}
        self._step([item for item in ready if item.finished is None])
        for item in ready:
            if item.index < self.how.steps:
                self._wait(item)
            elif self.how.label_pass == "extra" and item.place not in labelled:
                self._wait_for_labels(item)
            else:
                self._free.append(item.place)
                latents = self._latents[item.place].clone() if item.finished is None else item.finished
                yield Finished(item.job.key, latents, item.features)

    def _predict(self, rows: Sequence[tuple[_Item, int]]) -> None:
        """One call of the denoiser, full."""
        number = len(rows)
        padded = [*rows, *[rows[-1]] * ((self.how.rows_per_call or number) - number)]
        latents = self._latents[[item.place for item, _ in padded]]
        timesteps = torch.tensor([self._timestep(item) for item, _ in padded]).to(self.ldm.device)
        requests = [(item.job.request, half) for item, half in padded]
        prompts = [r.prompt if half == CONDITIONAL else r.negative_prompt for r, half in requests]
        scales = torch.tensor([1.0 if i.finished is not None else i.job.request.guidance_scale for i, _ in padded])
        conditioning = self.ldm.encode_prompts(prompts, self.how.rows_per_call)
        read = [k for k, (item, half) in enumerate(rows) if half == CONDITIONAL and self._is_read(item)]
        predicted, levels = self.ldm.denoise_and_read(latents, timesteps, conditioning, scales, read)
        self._predicted[[half for _, half in rows], [item.place for item, _ in rows]] = predicted[:number]
        for j, k in enumerate(read):
            rows[k][0].features = [latents[k].clone(), *(level[j] for level in levels)]

    def _timestep(self, item: _Item) -> int:
        if item.finished is None:
            return self.schedule.timesteps[item.index]
        return self.schedule.timesteps[-1] if self.how.timestep is None else self.how.timestep

    def _is_read(self, item: _Item) -> bool:
        if self.how.label_pass == "extra":
            return item.finished is not None
        return self.how.label_pass == "last_step" and item.index == self.how.steps - 1

    def _step(self, items: Sequence[_Item]) -> None:
        """Move items one step on, each from its own."""
        if not items:
            return
        places = [item.place for item in items]
        latents, conditional = self._latents[places], self._predicted[CONDITIONAL, places]
        guided = torch.tensor([item.index < item.guided_until for item in items])
        predicted = conditional
        if guided.any():
            scale = torch.tensor([item.job.request.guidance_scale for item in items]).to(latents)[:, None, None, None]
            unconditional = self._predicted[UNCONDITIONAL, places]
            both = unconditional + scale * (conditional - unconditional)
            predicted = torch.where(guided.to(latents.device)[:, None, None, None], both, conditional)
        eta = torch.tensor([item.job.request.eta for item in items])
        index = torch.tensor([item.index for item in items])
        self._latents[places] = self.schedule.step(index, predicted, latents, eta, self._noise(items))
        for item in items:
            item.index += 1
            if item.source is not None:
                self._keep(item)

    def _keep(self, item: _Item) -> None:
        """Put the source back into the cells that are kept, at the noise level that the item has come to.

        Blended latent diffusion (Avrahami et al. 2022, arXiv 2206.02779), RePaint (Lugmayr et al. 2022) without its
        resampling. The noise is the one that the item began with, as in diffusers: kept cells follow one trajectory.
        """
        clean, noise = item.source
        # Behind the last step clean, though DDIM's own end may still have a trace of noise: nothing removes it later.
        level = self.schedule.alphas[item.index].item() if item.index < self.how.steps else 1.0
        known = level**0.5 * clean + (1 - level) ** 0.5 * noise
        latents = self._latents[item.place]
        self._latents[item.place] = torch.where(item.job.kept.to(latents.device), known, latents)

    def _noise(self, items: Sequence[_Item]) -> Tensor:
        """For the items that want it, each from its own generator, so that no other item ever shifts it."""
        noise = torch.zeros(len(items), *self._latents.shape[1:])
        for row, item in zip(noise, items, strict=True):
            if self.schedule.draws_noise(item.index, item.job.request.eta):
                row.copy_(torch.randn(row.shape, generator=item.generator))
        return noise.to(self._latents.device)

    def _wait_for_labels(self, item: _Item) -> None:
        item.finished = self._latents[item.place].clone()
        noise = draw_noise(item.finished.shape, [item.generator])
        level = torch.tensor([self._timestep(item)])
        self._latents[item.place] = self.ldm.add_noise(item.finished[None], noise, level)[0]
        self._wait(item)
