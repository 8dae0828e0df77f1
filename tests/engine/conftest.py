"""Fixtures that stand for real things at small size: an untrained model of the embedded architecture, a small world."""

import numpy as np
import pytest
import torch

from engine.data.world import render_scene
from engine.data.world_folder import write_world
from engine.ldm.embedded import assemble, build_autoencoder, build_text_encoder, build_tokenizer, build_unet, patches_of


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """Four scenes, (4, 64, 64, 3) uint8."""
    return np.stack([np.asarray(render_scene(seed).image) for seed in range(4)])


@pytest.fixture(scope="session")
def ldm_folder(tmp_path_factory, images):
    """A pipeline folder of the embedded architecture with random weights."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    pipeline = assemble(build_autoencoder(patches_of(images)), build_text_encoder(tokenizer), tokenizer, build_unet())
    path = tmp_path_factory.mktemp("ldm") / "tiny"
    pipeline.save_pretrained(path, safe_serialization=True)
    return path


@pytest.fixture(scope="session")
def world_folder(tmp_path_factory):
    """A dataset folder: 8 training, 6 validation and 6 test scenes."""
    path = tmp_path_factory.mktemp("data") / "world"
    write_world(path, 8, 6, 6)
    return path
