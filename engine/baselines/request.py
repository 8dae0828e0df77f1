"""What every baseline is asked with, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engine.sections import LdmSettings, Settings

# Seen on the embedded world, 12 images side by side: at 0.4 and 0.6 the background keeps its layout and little but its
# small clutter changes; at 0.8 it takes other colours and clutter, and 2 of 12 get a patch that looks like part of an
# object; at 1.0 half of them do.
INPAINT_STRENGTH = 0.8


@dataclass(frozen=True)
class BaselineRequest:
    """One dataset to be made.

    Attributes:
        out: folder to be made; a baseline itself writes annotations.json and images/ there and nothing else.
        settings: all sections; `ldm.id` is where the diffusion model is, a folder or hub id.
        data: dataset folder with the labelled images. generated: dataset folder whose images get other labels. images:
            how many to make. None each where the baseline has no use for it.
        seed: of every random choice.
    """

    out: Path
    settings: Settings
    data: Path | None = None
    generated: Path | None = None
    images: int | None = None
    seed: int = 0

    @property
    def ldm(self) -> LdmSettings:
        """The diffusion model."""
        return self.settings.ldm


@dataclass(frozen=True)
class Outcome:
    """Numbers of what was made: images, boxes, ignored regions, and pictures dropped for want of a box; and what was
    chosen on validation images, json-ready."""

    images: int
    boxes: int
    ignored: int = 0
    dropped: int = 0
    chosen: Mapping = field(default_factory=dict)


@dataclass(frozen=True)
class Baseline:
    """A way to more labelled images.

    Attributes:
        make: writes the dataset; may assume that `needs` are given and `out` is not there.
        needs: fields of the request that must be given.
        settings: names, SECTION or SECTION.KEY, of those that decide what is made.
        split: the split of `data` that is read.
        draws: whether the diffusion model decides too.
    """

    make: Callable[[BaselineRequest], Outcome]
    needs: tuple[str, ...]
    settings: tuple[str, ...]
    split: str = "train"
    draws: bool = False
