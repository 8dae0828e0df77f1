"""Prompts that are longer than the text encoder reads: said once, in a line, where the libraries repeat the words."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

log = logging.getLogger(__name__)
MAX_SHOWN = 80  # characters


def warn_of_long_prompts(tokenizer, texts: Sequence[str]) -> bool:
    """Warn of the first text of which the encoder does not read the end; whether there is one.

    Args:
        tokenizer: of the pipeline; its `model_max_length` counts the marks of beginning and end too.
    """
    limit = tokenizer.model_max_length
    with quiet_libraries():
        lengths = [len(tokenizer(text).input_ids) for text in texts]
    long = [(text, length) for text, length in zip(texts, lengths, strict=True) if length > limit]
    if long:
        text, length = long[0]
        shown = text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
        log.warning(
            "The diffusion model reads %d tokens of a prompt, and %r has %d: its end is not read, nor that of other "
            "long prompts. Shorten generation.style, generation.styles, generation.domain or the captions.",
            limit,
            shown,
            length,
        )
    return bool(long)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Only errors of diffusers and transformers inside the `with` block."""
    before = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(before[0])
        transformers_logging.set_verbosity(before[1])
