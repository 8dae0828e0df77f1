"""Which of many generated images to look at, so that none of their kinds is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from engine.data.dataset import ImageRecord

_RANGES = 4  # of encode ratios, equally wide
_ONE_RATIO = 0.02  # a range narrower than this is one group


def spread_over_ratios(images: Sequence[ImageRecord], count: int) -> list[tuple[str, ImageRecord]]:
    """(range of encode ratios, image): as many of every range where there are enough, evenly within each.

    images: by rising encode ratio.
    """
    if not images:
        return []
    low, high = encode_ratio(images[0]), encode_ratio(images[-1])
    ranges = _RANGES if high - low >= _ONE_RATIO else 1
    width = (high - low) / ranges or 1.0
    groups: list[list[ImageRecord]] = [[] for _ in range(ranges)]
    for image in images:
        groups[min(int((encode_ratio(image) - low) / width), ranges - 1)].append(image)
    quotas = [0] * ranges
    for _ in range(min(count, len(images))):
        open_ones = [k for k in range(ranges) if quotas[k] < len(groups[k])]
        quotas[min(open_ones, key=lambda k: quotas[k])] += 1
    picked = []
    for k, (group, quota) in enumerate(zip(groups, quotas, strict=True)):
        words = f"{low:.2f}" if ranges == 1 else f"{low + k * width:.2f} to {low + (k + 1) * width:.2f}"
        picked += [(words, group[(2 * place + 1) * len(group) // (2 * quota)]) for place in range(quota)]
    return picked


def of_every_reason(images: Sequence[ImageRecord], refusals: Mapping[int, str], count: int) -> list[ImageRecord]:
    """One of each kind of reason in turn; a reason's kind is what stands before its colon."""
    seen: Counter[str] = Counter()
    turns = {}
    for image in images:
        kind = refusals.get(image.id, "").partition(":")[0]
        turns[image.id] = seen[kind]
        seen[kind] += 1
    return sorted(images, key=lambda image: (turns[image.id], image.id))[:count]


def encode_ratio(image: ImageRecord) -> float:
    """Of a generated image; 0 where it says nothing."""
    return float(image.extra.get("de", {}).get("strength", 0.0))
