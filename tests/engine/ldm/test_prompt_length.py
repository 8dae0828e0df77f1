import logging

import pytest

from engine.ldm.diffusion import load_ldm

SHORT, LONG = "A scene, with car", "A scene, with " + "car, " * 30 + "in the scene"


@pytest.fixture(scope="module")
def ldm():
    return load_ldm("world", device="cpu")


def test_a_prompt_that_is_too_long_is_told_of_once_by_its_words_and_numbers(ldm, caplog, capfd):
    with caplog.at_level(logging.WARNING):
        ldm.encode_prompts([SHORT, ""])
        assert not caplog.messages
        ldm.encode_prompts([SHORT, LONG])
        ldm.encode_prompts([LONG + "!"])
    (message,) = caplog.messages
    assert "reads 24 tokens" in message and "'A scene, with car, car" in message and "generation.style" in message
    assert "CLIP can only handle" not in capfd.readouterr().err  # diffusers' own message lists the lost words each time
