"""The words that an image is drawn with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.sections import GenerationSettings

if TYPE_CHECKING:
    from engine.data.dataset import Dataset, ImageRecord


def prompt_of(dataset: Dataset, image: ImageRecord, settings: GenerationSettings) -> str:
    """The prompt of a source image, by `settings.prompt`; the words of `settings.style` come behind it.

    "caption" is the image's own caption, taken as it is, where it has one, else the template; "template" is the paper's
    `A [domain], with [cls-a], [cls-b], ... in the [domain]`, the image's classes in the order of the dataset's
    categories; "none" is empty.
    """
    caption = image.extra.get("caption")
    if settings.prompt == "none":
        words = ""
    elif settings.prompt == "caption" and isinstance(caption, str) and caption.strip():
        words = caption
    else:
        words = template(settings.domain, classes_of(dataset, image.id))
    return with_style(words, settings.style)


def with_style(words: str, style: str) -> str:
    """A prompt with the words of a style behind it; either may be empty."""
    return ", ".join(part for part in (words, style) if part)


def template(domain: str, classes: list[str]) -> str:
    """The paper's template (arXiv 2309.03893); without classes only `A [domain]`."""
    return f"A {domain}, with {', '.join(classes)} in the {domain}" if classes else f"A {domain}"


def classes_of(dataset: Dataset, image_id: int) -> list[str]:
    """Names of the distinct classes of an image's objects (ignore regions apart), in the categories' order."""
    present = {box.category_id for box in dataset.annotations_of(image_id) if not box.iscrowd}
    return [category.name for category in dataset.categories if category.id in present]
