"""Streams through the embedded model: the same bits whatever the company, full calls, nothing done twice."""

import dataclasses

import pytest
import torch

from engine.data.pixels import to_model
from engine.errors import DatasetError, ModelError
from engine.ldm.diffusion import load_ldm
from engine.ldm.encoder import Encoder
from engine.ldm.jobs import How, Job, SampleRequest, stack_rows
from engine.ldm.sampling import sample
from engine.ldm.stream import Stream

REQUESTS = [
    SampleRequest(1, "a red car", "", 0.3, 2.0, 0.2),
    SampleRequest(2, "a blue fish", "a house", 1.0, 5.0, 0.0),
    SampleRequest(3, "", "", 0.6, 1.0, 0.4),
    SampleRequest(4, "a tree", "", 0.8, 3.0, 0.1),
    SampleRequest(5, "two boats", "", 0.5, 1.0, 0.0),
]
ROWS = 3  # odd: the two rows of a guided item come to lie in different calls


@pytest.fixture(scope="module")
def ldm():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_ldm("world", device="cpu")
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pixels(images) -> torch.Tensor:
    return to_model(torch.from_numpy(images).permute(0, 3, 1, 2))


@pytest.fixture
def calls(ldm):
    """Number of rows of each call of the denoiser."""
    seen = []
    handle = ldm.denoiser.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    yield seen
    handle.remove()


def draw(ldm, pixels, order, in_flight, how=None) -> dict:
    """Finished jobs, decoded, by their place in REQUESTS; the fifth starts from noise."""
    how = how or How(4, rows_per_call=ROWS)
    rows = how.rows_per_call
    moments = Encoder(ldm).moments(order, lambda key: pixels[key % 4], rows or 1)
    jobs = (Job(i, REQUESTS[i], found if i < 4 else None) for i, found in zip(order, moments, strict=True))
    finished = list(Stream(ldm, how, (64, 64), in_flight).run(jobs))
    assert sorted(item.key for item in finished) == sorted(order)
    images = [ldm.decode(stack_rows([item.latents], rows))[0] for item in finished]
    return {item.key: [item.latents, *item.features, image] for item, image in zip(finished, images, strict=True)}


def same_bits(a: dict, b: dict) -> bool:
    return all(torch.equal(x, y) for key in b for x, y in zip(a[key], b[key], strict=True))


@pytest.mark.parametrize("label_pass", ["last_step", "extra"])
def test_an_image_is_the_same_to_the_last_bit_in_any_company(ldm, pixels, label_pass):
    how = How(4, label_pass=label_pass, rows_per_call=ROWS)
    expected = draw(ldm, pixels, [0, 1, 2, 3, 4], 1, how)
    assert same_bits(expected, draw(ldm, pixels, [0, 1, 2, 3, 4], 4, how))
    assert same_bits(expected, draw(ldm, pixels, [4, 2, 0, 3, 1], 7, how))
    assert same_bits(expected, draw(ldm, pixels, [3], 2, how))


def test_other_numbers_of_rows_change_last_digits_only(ldm, pixels):
    """And without padding, so does the company: this is what the padding is for."""
    few, many = (draw(ldm, pixels, range(5), 5, How(4, rows_per_call=rows)) for rows in (1, 8))
    for i in few:
        assert ((few[i][-1] - many[i][-1]).abs() * 127.5).max() < 1
        for a, b in zip(few[i], many[i], strict=True):
            torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-3)
    alone, together = (draw(ldm, pixels, range(5), in_flight, How(4)) for in_flight in (1, 5))
    assert not same_bits(alone, together)


def test_calls_are_full(ldm, pixels, calls):
    order = [i % 5 for i in range(30)]
    jobs = (Job(place, REQUESTS[i]) for place, i in enumerate(order))
    assert len(list(Stream(ldm, How(3, rows_per_call=4), (64, 64), 4).run(jobs))) == 30
    rows = sum(3 * (2 if REQUESTS[i].guidance_scale > 1 else 1) for i in order)
    assert set(calls) == {4}
    assert rows / 4 <= len(calls) <= rows / 4 + 2


def test_guidance_in_a_share_of_the_steps(ldm, pixels, calls):
    requests = [SampleRequest(1, "a red car", "", 0.5, 4.0)]
    all_of_them = sample(ldm, requests, 10, pixels[:1])
    assert calls == [2] * 5
    calls.clear()
    half = sample(ldm, requests, 10, pixels[:1], guidance_share=0.6)
    assert calls == [2, 2, 2, 1, 1]
    none = sample(ldm, requests, 10, pixels[:1], guidance_share=0.0)
    plain = sample(ldm, [dataclasses.replace(requests[0], guidance_scale=1.0)], 10, pixels[:1])
    assert torch.equal(none.images, plain.images)
    near, far = ((images - all_of_them.images).abs().mean() for images in (half.images, none.images))
    assert 0 < near < far


def test_a_source_is_encoded_once_for_its_variants_and_read_ahead(ldm, pixels, monkeypatch):
    encoded = []
    encode = ldm.encode_moments
    monkeypatch.setattr(ldm, "encode_moments", lambda batch: encoded.append(len(batch)) or encode(batch))
    read = []
    encoder = Encoder(ldm)
    wanted = [0, 0, 1, 2, 0, 3, 3, 1]
    for _ in range(2):
        found = list(encoder.moments(wanted, lambda key: read.append(key) or pixels[key], 2))
        assert len(found) == len(wanted)
    assert encoded == [2, 2] and read == [0, 1, 2, 3]
    assert torch.equal(found[0][0], found[4][0])


def test_an_image_that_cannot_be_read_is_its_own_failure_alone(ldm, pixels):
    def read(key):
        if key == 1:
            raise DatasetError("1.png is cut off")
        if key == 3:
            raise ModelError("a matter of the run")
        return pixels[key]

    found = list(Encoder(ldm).moments([0, 1, 2, 1], read, 2))
    assert [type(each) for each in found] == [tuple, DatasetError, tuple, DatasetError]
    whole = list(Encoder(ldm).moments([0, 2], read, 2))
    assert torch.equal(found[0][0], whole[0][0]) and torch.equal(found[2][0], whole[1][0])
    with pytest.raises(ModelError, match="matter of the run"):
        list(Encoder(ldm).moments([0, 3], read, 2))


def test_texts_are_encoded_the_same_in_any_company(ldm):
    alone = ldm.encode_prompts(["a red house"], 4)["states"]
    ldm._prompt_cache.clear()
    ldm.prepare_prompts(["a fish"], ["a car", "a red house", "a boat", "a tree"], 4)
    assert sorted(text for _, text in ldm._prompt_cache) == ["a boat", "a car", "a fish", "a red house"]
    assert torch.equal(ldm.encode_prompts(["a red house"], 4)["states"], alone)
