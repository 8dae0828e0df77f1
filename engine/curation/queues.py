"""Which reviewer looks at which image: every image is in one queue, and the queues differ by at most one image."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

from engine.errors import ConfigError

DECIDED = "decided"  # the tag of an image that a person decided about, where it is not known who
_BY = f"{DECIDED} by "


def checked_reviewers(names: Iterable[str]) -> tuple[str, ...]:
    """The names in an order of their own, whatever order they were given in.

    Raises:
        ConfigError: a name that cannot be part of a file's name and of a web address, or one that comes twice.
    """
    known = sorted(name.strip() for name in names)
    for name in known:
        if len(name) > 40 or not re.fullmatch("[A-Za-z0-9]+(-[A-Za-z0-9]+)*", name):
            raise ConfigError(
                f"Reviewer {name!r}: write a name of a-z, A-Z and 0-9, with - between, of up to 40 signs."
            )
    lower = sorted(name.lower() for name in known)
    twice = next((a for a, b in zip(lower, lower[1:], strict=False) if a == b), None)
    if twice:
        raise ConfigError(f"Reviewer {twice!r} is named twice.")
    return tuple(known)


def share_out(image_ids: Iterable[int], reviewers: Sequence[str]) -> dict[int, str]:
    """Image id -> reviewer: dealt in an order that is random to the eye and the same at every call.

    Args:
        reviewers: as from `checked_reviewers`; none share nothing out.
    """
    if not reviewers:
        return {}
    dealt = sorted(image_ids, key=lambda image_id: hashlib.sha256(str(image_id).encode()).digest())
    return {image_id: reviewers[place % len(reviewers)] for place, image_id in enumerate(dealt)}


def decided_tag(reviewer: str | None) -> str:
    """The tag that says who decided about an image."""
    return f"{_BY}{reviewer}" if reviewer else DECIDED


def is_decided_tag(tag: str) -> bool:
    """Whether a tag says that, and by whom, a decision was made."""
    return tag == DECIDED or tag.startswith(_BY)


def decided_by(tags: Iterable[str]) -> str | None:
    """Who decided, as an image's tags say it."""
    return next((tag.removeprefix(_BY) for tag in tags if tag.startswith(_BY)), None)
