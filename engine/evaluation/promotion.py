"""Whether a comparison's outcome lets new data join what is trained on."""

from __future__ import annotations

from dataclasses import dataclass

from engine.sections import ScaleUpSettings


@dataclass(frozen=True)
class Ruling:
    """promoted, and the reason in one sentence with the figures it rests on."""

    promoted: bool
    reason: str


def rule(mean: float, low: float, high: float, settings: ScaleUpSettings) -> Ruling:
    """Apply `scale_up.promote` to a difference real + generated minus real and its 95 % interval, all mAP from 0 to 1.

    helps: low > 0. not_hurting: high >= 0 (the interval does not say that it hurts) and mean >= -tolerance.
    """
    figures = f"{100 * mean:+.1f} mAP, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}"
    if settings.promote == "helps":
        if low > 0:
            return Ruling(True, f"it helps: {figures}")
        return Ruling(False, f"scale_up.promote=helps wants an interval above 0: {figures}")
    if high < 0:
        return Ruling(False, f"it hurts: {figures}")
    if mean < -settings.tolerance:
        limit = f"scale_up.tolerance={settings.tolerance:g} allows {-100 * settings.tolerance:+.1f} mAP on average"
        return Ruling(False, f"{limit}: {figures}")
    return Ruling(True, f"it is not shown to hurt: {figures}")
