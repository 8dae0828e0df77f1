"""The settings in which generated data is claimed to help, as cases that `de study` runs one after the other."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from engine.errors import ConfigError

SIZES = ("1%", "5%", "10%", "50", "150", "500")
DETECTORS = ("small", "small:retinanet", "small:fasterrcnn", "small:rtdetr")
SIZED_DETECTORS = ("small:dino", "small:rtdetr")  # in their tiny size: the full one, DINO's, is for a GPU
FIRST = ("pretrained", "generated_first")  # arms of engine.evaluation.arms
NEIGHBOURS = ("copy_paste", "inpaint", "detector", "attention")  # names of engine.baselines


@dataclass(frozen=True)
class Case:
    """One comparison of a study.

    Attributes:
        name: its folder and its row.
        labels: how many of the training images keep their labels; None for all.
        unlabelled: draw from the pictures without labels too; None: as generation.unlabelled says.
        overrides: settings section.key=value of the comparison, beside the user's.
        controls: arms of the comparison, beside those of the user's compare.controls.
        semi: an arm with the adapter's labels on the unlabelled pictures as they are.
        neighbours: arms with the datasets of these baselines.
    """

    name: str
    labels: int | None = None
    unlabelled: bool | None = None
    overrides: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    semi: bool = False
    neighbours: tuple[str, ...] = ()


def data_sparse(images: int, sizes: Sequence[str], detectors: Sequence[str]) -> list[Case]:
    """Few pictures, all labelled, and no others."""
    return [Case(f"{count} images", count, unlabelled=False) for count in counts(images, sizes)]


def label_scarce(images: int, sizes: Sequence[str], detectors: Sequence[str]) -> list[Case]:
    """Few labels, and pictures without any: images are drawn from all of them."""
    return [Case(f"{count} labels", count, unlabelled=True) for count in _fewer(images, sizes)]


def semi_supervised(images: int, sizes: Sequence[str], detectors: Sequence[str]) -> list[Case]:
    """As label-scarce, beside the adapter's labels on the pictures as they are, which is what drawing has to beat."""
    return [Case(f"{count} labels", count, True, semi=True) for count in _fewer(images, sizes)]


def pretrain(images: int, sizes: Sequence[str], detectors: Sequence[str]) -> list[Case]:
    """Generated images first, real ones alone afterwards, in the same number of steps."""
    return [Case(f"{count} images", count, controls=FIRST) for count in counts(images, sizes)]


def several_detectors(images: int, sizes: Sequence[str], detectors: Sequence[str]) -> list[Case]:
    """The same generated images, another detector each time."""
    if not detectors:
        raise ConfigError(f"--detectors: write names of detectors, such as {','.join(DETECTORS)}.")
    sizes = {name: ("detector.size=tiny",) for name in SIZED_DETECTORS}
    return [Case(name, overrides=(f"detector.name={name}", *sizes.get(name, ()))) for name in detectors]


def neighbours(images: int, sizes: Sequence[str], detectors: Sequence[str]) -> list[Case]:
    """Other ways to more labelled images, of the same labels, in one table."""
    return [Case(f"{count} images", count, neighbours=NEIGHBOURS) for count in counts(images, sizes)]


def cross_domain(images: int, sizes: Sequence[str], detectors: Sequence[str]) -> list[Case]:
    """Labels in one domain, pictures and the test in another: `--target`."""
    return [Case("across domains", unlabelled=True, semi=True)]


PRESETS: dict[str, Callable[[int, Sequence[str], Sequence[str]], list[Case]]] = {
    "data-sparse": data_sparse,
    "label-scarce": label_scarce,
    "semi-supervised": semi_supervised,
    "cross-domain": cross_domain,
    "pretrain": pretrain,
    "detectors": several_detectors,
    "neighbours": neighbours,
}

SIZED = ("data-sparse", "label-scarce", "semi-supervised", "pretrain", "neighbours")
TAKES = {  # which presets an option is of
    "--sizes": SIZED,
    "--detectors": ("detectors",),
    "--target": ("cross-domain",),
    "--style": ("cross-domain",),
}


def check_options(preset: str, given: Mapping[str, object]) -> None:
    """Refuse what a preset would not look at.

    Args:
        given: the options of `TAKES` by name; None for one that was not given.

    Raises:
        ConfigError: no such preset, an option that another one takes, or no target where one is needed.
    """
    if preset not in PRESETS:
        raise ConfigError(f"de study {preset}: write one of {', '.join(PRESETS)}.")
    for option, value in given.items():
        if value is not None and preset not in TAKES[option]:
            raise ConfigError(f"{option} is for {', '.join(TAKES[option])}: de study {preset} does not look at it.")
    if preset == "cross-domain" and given["--target"] is None:
        raise ConfigError("de study cross-domain: give the dataset of the other domain as --target DIR.")


def _fewer(images: int, sizes: Sequence[str]) -> list[int]:
    """`counts` of fewer than all images.

    Raises:
        ConfigError: no such count.
    """
    found = [count for count in counts(images, sizes) if count < images]
    if not found:
        raise ConfigError(f"--sizes {','.join(sizes)}: all {images} images keep their labels. Write a smaller size.")
    return found


def counts(images: int, sizes: Sequence[str]) -> list[int]:
    """Numbers of images out of texts such as 10% and 150: growing, each once, those that there are at least 2 of.

    Raises:
        ConfigError: a text that is no such size, or nothing is left.
    """
    found = set()
    for text in sizes:
        if not re.fullmatch(r"\d+(\.\d+)?%|\d+", text):
            raise ConfigError(f"--sizes {text}: write a number of images, or a percentage such as 10%.")
        share = text.endswith("%")
        found.add(round(images * float(text[:-1]) / 100) if share else int(text))
    usable = sorted(count for count in found if 2 <= count <= images)
    if not usable:
        raise ConfigError(f"--sizes {','.join(sizes)}: none is between 2 and the {images} training images there are.")
    return usable
