"""An image that does not show its words, or looks like no real one, is caught; by a small CLIP that learns colours."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.nn import functional
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from engine.curation.gates import judge
from engine.curation.image_text import load_image_text
from engine.data.dataset import Annotation, Category, ImageRecord, read_dataset, write_dataset
from engine.errors import ModelError
from engine.ldm.embedded import build_tokenizer
from engine.sections import ReviewSettings, Settings
from tasks.review import review

COLOURS = {"boat": (220, 30, 30), "fish": (30, 60, 220)}
NAMES = list(COLOURS)
SIZE = 32
CPU = torch.device("cpu")


def _picture(colour, number: int) -> Image.Image:
    """A square of the colour on grey, somewhere."""
    picture = Image.new("RGB", (SIZE, SIZE), (120 + number % 7, 124, 118))
    corner = (2 + number * 5 % 12, 2 + number * 7 % 12)
    picture.paste(Image.new("RGB", (16, 16), colour), corner)
    return picture


def _words(name: str) -> str:
    return f"A scene, with {name} in the scene"


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    """Trained until words and pictures of the two colours find each other."""
    tokenizer = build_tokenizer()
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length, **ids}
    torch.manual_seed(0)
    sight = {**small, "image_size": SIZE, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config={**small, **words}, vision_config=sight, projection_dim=16))
    square = {"height": SIZE, "width": SIZE}
    processor = CLIPProcessor(CLIPImageProcessor(size=square, crop_size=square), tokenizer)
    pictures = [_picture(COLOURS[name], n) for n in range(8) for name in NAMES]
    inputs = processor(
        images=pictures, text=[_words(name) for name in NAMES], padding="max_length", return_tensors="pt"
    )
    which = torch.arange(len(pictures)) % len(NAMES)
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(60):
        loss = functional.cross_entropy(model(**inputs).logits_per_image, which)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.1
    folder = tmp_path_factory.mktemp("encoder")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _write(folder, split, pictures):
    """(colour, class, extra) of each picture, as a split of a dataset folder."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, boxes = [], []
    for number, (colour, name, extra) in enumerate(pictures, start=1):
        _picture(colour, number).save(folder / "images" / f"{split}{number}.png")
        images.append(ImageRecord(number, f"{split}{number}.png", SIZE, SIZE, extra))
        boxes.append(Annotation(number, number, 1 + NAMES.index(name), (4.0, 4.0, 16.0, 16.0), 256.0, 0))
    write_dataset(folder, split, images, boxes, [Category(n, name) for n, name in enumerate(NAMES, start=1)])
    return read_dataset(folder, split)


@pytest.fixture
def data(tmp_path):
    """12 real images, and generated ones: sound, of the other colour than its words, of no known colour, wordless."""

    def drawn(number: int, words: str) -> dict:
        return {"de": {"item": number, "source_image_id": number, "mode": "img2img", "prompt": words}}

    _write(tmp_path / "real", "train", [(COLOURS[name], name, {}) for name in NAMES * 6])
    generated = [
        (COLOURS["boat"], "boat", drawn(1, _words("boat"))),
        (COLOURS["boat"], "fish", drawn(2, _words("fish"))),
        ((20, 240, 20), "boat", drawn(3, "")),
        (COLOURS["fish"], "fish", drawn(4, "")),
    ]
    _write(tmp_path / "generated", "annotations", generated)
    return tmp_path


def _settings(folder, **values) -> ReviewSettings:
    return ReviewSettings(encoder=str(folder), duplicate_distance=0, borderline_bits=0, **values)


def test_words_and_domain_are_judged_against_the_real_images(encoder_folder, data):
    settings = _settings(encoder_folder)
    encoder = load_image_text(settings, CPU)
    real = {"train": read_dataset(data / "real", "train")}
    generation = replace(Settings().generation, domain="scene")
    generated = read_dataset(data / "generated", "annotations")

    def reasons(settings):
        verdicts = judge(generated, real, settings, encoder=encoder, generation=generation).verdicts
        return verdicts, [{r for r in v.reasons if r.startswith("off_")} for v in verdicts]

    verdicts, found = reasons(settings)
    assert "off_prompt" in found[1] and "off_domain" in found[2] and not found[0] and not found[3]
    assert verdicts[0].scores["text_similarity"] > verdicts[1].scores["text_similarity"]
    assert "text_similarity" not in verdicts[3].scores, "without words there is nothing to agree with"
    assert "deviations below" in verdicts[1].note
    assert not any(reasons(replace(settings, max_deviation=0.0))[1])


def test_review_loads_the_encoder_and_pins_it(encoder_folder, data):
    settings = replace(Settings(), review=_settings(encoder_folder))
    review(data / "generated", data / "real", settings, fiftyone="off")
    gates = json.loads((data / "generated" / "gates.json").read_text())
    assert "off_prompt" in gates["images"][1]["reasons"] and not gates["images"][1]["accepted"]
    assert len(gates["encoder"]["weights_sha256"][0]) == 64 and gates["encoder"]["id"] == encoder_folder.name


def test_what_is_no_encoder_is_refused_in_words(encoder_folder, tmp_path):
    with pytest.raises(ModelError, match="review.encoder_revision"):
        load_image_text(ReviewSettings(encoder="openai/clip-vit-base-patch32"), CPU)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="no image-text encoder can be read"):
        load_image_text(ReviewSettings(encoder=str(tmp_path)), CPU)
    CLIPModel.from_pretrained(encoder_folder).text_model.save_pretrained(tmp_path / "half")
    with pytest.raises(ModelError, match="review.encoder"):
        load_image_text(ReviewSettings(encoder=str(tmp_path / "half")), CPU)
