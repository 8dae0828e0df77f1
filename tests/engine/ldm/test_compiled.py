"""Compiled calls give what plain ones give, features and all."""

import pytest
import torch

from engine.errors import ModelError
from engine.ldm.diffusion import load_ldm
from engine.ldm.jobs import How, Job, SampleRequest
from engine.ldm.stream import Stream

REQUESTS = [SampleRequest(1, "a red car", "", 1.0, 2.0, 0.2), SampleRequest(2, "a blue fish", "a house", 1.0, 1.0)]


def draw(ldm):
    jobs = iter([Job(i, request) for i, request in enumerate(REQUESTS)])
    finished = Stream(ldm, How(3, rows_per_call=3), (64, 64), 2).run(jobs)
    return [[item.latents, *item.features] for item in sorted(finished, key=lambda item: item.key)]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd1", "pixart"])
def test_a_compiled_denoiser_draws_and_reads_the_same(model_of, family):
    ldm = load_ldm(model_of(family), device="cpu")
    expected = draw(ldm)
    ldm.compile()
    compiled = draw(ldm)
    for a, b in zip(expected, compiled, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)
    again = draw(ldm)
    assert all(torch.equal(x, y) for a, b in zip(compiled, again, strict=True) for x, y in zip(a, b, strict=True))


@pytest.mark.slow
def test_what_cannot_be_compiled_is_said_in_one_message(model_of, monkeypatch):
    ldm = load_ldm(model_of("sd1"), device="cpu")

    def broken(*args, **kwargs):
        raise torch._dynamo.exc.BackendCompilerFailed("inductor", RuntimeError("no compiler"), None)

    ldm.compile()
    monkeypatch.setattr(ldm._compiled, "_call", broken)
    with pytest.raises(ModelError, match="ldm.compile=false"):
        draw(ldm)
