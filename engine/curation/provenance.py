"""Which real image a generated one was drawn from, and how much of it it may show."""

from __future__ import annotations

from engine.data.dataset import ImageRecord

IMG2IMG, TEXT_TO_IMAGE = "img2img", "text_to_image"


def source_image_id(image: ImageRecord) -> int | None:
    """Id of the real image that a generated one was drawn from; None where it records none."""
    return _recorded(image).get("source_image_id")


def origin_image_id(image: ImageRecord) -> int | None:
    """Id of the real image whose pixels a generated one started from: None for text-to-image, where the source lends
    only its words and its size, so that nothing of it should be seen."""
    return None if _recorded(image).get("mode") == TEXT_TO_IMAGE else source_image_id(image)


def redrawn_image_id(image: ImageRecord) -> int | None:
    """Id of the real image that a generated one redraws (img2img); None for images that were composed otherwise."""
    return source_image_id(image) if _recorded(image).get("mode", IMG2IMG) == IMG2IMG else None


def encode_ratio(image: ImageRecord) -> float | None:
    """`de.strength`, from 0 to 1; None where it is not recorded."""
    return _recorded(image).get("strength")


def prompt_words(image: ImageRecord) -> str:
    """The words that the image was drawn with; empty where there were none."""
    words = _recorded(image).get("prompt")
    return words.strip() if isinstance(words, str) else ""


def _recorded(image: ImageRecord) -> dict:
    provenance = image.extra.get("de")
    return provenance if isinstance(provenance, dict) else {}
