import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from engine.baselines.cross_attention import (
    CrossAttentionSettings,
    attention_maps,
    boxes_of,
    class_maps,
    cross_attention_layers,
    grid_of,
    label,
    record_attention,
    token_span,
)
from engine.data.pixels import to_model
from engine.data.world import CLASSES
from engine.errors import ModelError
from engine.ldm.diffusion import load_ldm

PROMPTS = ["a red house and a blue car in the meadow", "a green tree in the sea"]
SETTINGS = CrossAttentionSettings((100,), threshold=0.6)


@pytest.fixture(scope="module")
def ldm(ldm_folder):
    return load_ldm(ldm_folder, device="cpu")


@pytest.fixture(scope="module")
def pixels(images):
    return to_model(torch.from_numpy(images[:2]).permute(0, 3, 1, 2))


def blob(*boxes) -> torch.Tensor:
    values = torch.zeros(64, 64)
    for x0, y0, x1, y1 in boxes:
        values[y0:y1, x0:x1] = 1.0
    return values


def test_every_pixel_shares_its_attention_among_the_tokens(ldm, pixels):
    maps = attention_maps(ldm, pixels, PROMPTS, CrossAttentionSettings((1, 300)))
    assert maps.shape == (2, 24, 64, 64) and (maps >= 0).all()
    assert torch.allclose(maps.sum(dim=1), torch.ones(2, 64, 64), atol=1e-5)


def test_the_maps_are_what_the_stock_processor_mixes_words_by(ldm, pixels, monkeypatch):
    name, layer = list(cross_attention_layers(ldm.denoiser).items())[-1]
    used, compute = [], layer.get_attention_scores

    def keep(*args):
        used.append(compute(*args))
        return used[-1]

    monkeypatch.setattr(layer, "get_attention_scores", keep)
    monkeypatch.setattr(layer, "processor", AttnProcessor())
    with record_attention(ldm.denoiser, (name,)) as maps, torch.no_grad():
        ldm.denoise(ldm.encode_images(pixels), torch.tensor([100, 100]), ldm.encode_prompts(PROMPTS))
    by_processor = used[-1].reshape(2, layer.heads, *used[-1].shape[1:]).mean(dim=1)
    assert len(used) == 2 and layer.heads > 1 and torch.allclose(maps[name], by_processor, atol=1e-6)


def test_recording_changes_no_output_and_leaves_nothing_behind(ldm, pixels):
    latents, t, words = ldm.encode_images(pixels), torch.tensor([100, 100]), ldm.encode_prompts(PROMPTS)
    layers = cross_attention_layers(ldm.denoiser)
    processors = {name: layer.processor for name, layer in layers.items()}
    with torch.no_grad():
        before = ldm.denoise(latents, t, words)
        with record_attention(ldm.denoiser) as maps:
            during = ldm.denoise(latents, t, words)
        recorded = dict(maps)
        with pytest.raises(RuntimeError, match="stop"), record_attention(ldm.denoiser):
            raise RuntimeError("stop")
        after = ldm.denoise(latents, t, words)
    assert torch.equal(before, during) and torch.equal(before, after)
    assert set(recorded) == set(layers) and all(maps[name] is recorded[name] for name in maps)
    assert all(layer.processor is processors[name] for name, layer in layers.items())
    assert not any(layer._forward_pre_hooks for layer in layers.values())


def test_chosen_layers_alone_are_read_and_unknown_ones_refused(ldm, pixels):
    name = next(iter(cross_attention_layers(ldm.denoiser)))
    one = attention_maps(ldm, pixels, PROMPTS, CrossAttentionSettings((100,), (name,)))
    assert not torch.allclose(one, attention_maps(ldm, pixels, PROMPTS, CrossAttentionSettings((100,))))
    with pytest.raises(ModelError, match="no cross-attention layer nowhere"):
        attention_maps(ldm, pixels, PROMPTS, CrossAttentionSettings((100,), ("nowhere",)))
    with pytest.raises(ModelError, match="no cross-attention layers"):
        cross_attention_layers(torch.nn.Linear(2, 2))


def test_only_prompted_classes_get_a_map_and_boxes(ldm, pixels):
    maps = class_maps(ldm, pixels, PROMPTS, CLASSES, SETTINGS)
    assert [{CLASSES[i] for i in named} for named in maps] == [{"house", "car"}, {"tree"}]
    for values in (values for named in maps for values in named.values()):
        assert values.shape == (64, 64) and values.min() == 0 and values.max() == 1
    found = label(ldm, pixels, PROMPTS, CLASSES, SETTINGS)
    for named, detections in zip(maps, found, strict=True):
        assert set(detections.labels.tolist()) <= set(named)
    none = label(ldm, pixels, ["nothing in the snow"] * 2, CLASSES, SETTINGS)
    assert all(len(d.boxes_xyxy) == 0 for d in none)


def test_a_label_depends_on_its_image_and_prompt_alone(ldm, pixels):
    together = label(ldm, pixels, PROMPTS, CLASSES, SETTINGS)
    for i in range(2):
        (alone,) = label(ldm, pixels[i : i + 1], PROMPTS[i : i + 1], CLASSES, SETTINGS)
        assert len(alone.scores) and torch.equal(alone.boxes_xyxy, together[i].boxes_xyxy)
        assert torch.allclose(alone.scores, together[i].scores, atol=1e-4)


def test_components_become_tight_boxes_best_first():
    values = blob((4, 8, 20, 30)) + 0.7 * blob((40, 10, 60, 50)) + 0.9 * blob((2, 50, 4, 52))
    found = boxes_of({2: values}, 0.5, min_side=4)
    assert found.boxes_xyxy.tolist() == [[4, 8, 20, 30], [40, 10, 60, 50]]
    assert found.labels.tolist() == [2, 2] and found.scores.tolist() == pytest.approx([1.0, 0.7])
    assert len(boxes_of({2: values}, 0.5).labels) == 3


def test_the_failures_of_the_method_are_real():
    apart, touching = ((4, 8, 20, 30), (24, 8, 40, 30)), ((4, 8, 20, 30), (20, 12, 40, 30))
    assert len(boxes_of({0: blob(*apart)}, 0.5).boxes_xyxy) == 2  # and so an object in two parts is two boxes
    assert boxes_of({0: blob(*touching)}, 0.5).boxes_xyxy.tolist() == [[4, 8, 40, 30]]


def test_no_regions_no_boxes():
    for maps in ({}, {0: torch.zeros(64, 64)}):
        found = boxes_of(maps, 0.5)
        assert found.boxes_xyxy.shape == (0, 4) and found.labels.shape == found.scores.shape == (0,)


def test_names_are_found_as_whole_words(ldm):
    def spelled(prompt: str, name: str, count: int = 24) -> str:
        ids = ldm.tokenizer(prompt).input_ids
        return ldm.tokenizer.decode([ids[i] for i in token_span(ldm.tokenizer, prompt, name, count)]).strip()

    assert spelled("a red house in the sea", "house") == "house"
    assert spelled("a House and a house", "house") == "house house"
    for other in ("two houses", "a warehouse", "a car", ""):
        assert token_span(ldm.tokenizer, other, "house", 24) == []
    several = token_span(ldm.tokenizer, "a zebra crossing in the sea", "zebra  Crossing", 24)
    assert len(several) > 2 and several == list(range(several[0], several[-1] + 1))
    assert token_span(ldm.tokenizer, "a red house", "", 24) == []


def test_a_name_that_is_cut_off_is_no_mention(ldm):
    prompt = "a red house"  # start, a, red, house, end
    assert token_span(ldm.tokenizer, prompt, "house", 5) == [3] and token_span(ldm.tokenizer, prompt, "house", 4) == []
    long = " ".join(["a red"] * 12) + " house"
    states = ldm.encode_prompts([long])["states"]
    assert token_span(ldm.tokenizer, long, "house", states.shape[1]) == []


def test_the_grid_of_a_layer_follows_from_its_cells():
    assert grid_of(64, (16, 16)) == (8, 8)  # the embedded model's
    assert grid_of(15, (5, 9)) == (3, 5) and grid_of(192, (12, 16)) == (12, 16) and grid_of(12, (12, 16)) == (3, 4)
    with pytest.raises(ModelError, match="does not fit"):
        grid_of(50, (16, 16))


def test_an_even_map_points_nowhere(ldm, pixels, monkeypatch):
    for layer in cross_attention_layers(ldm.denoiser).values():
        monkeypatch.setattr(layer.to_q, "weight", torch.nn.Parameter(torch.zeros_like(layer.to_q.weight)))
    maps = class_maps(ldm, pixels, PROMPTS, CLASSES, SETTINGS)
    assert all(values.max() == 0 for named in maps for values in named.values())
