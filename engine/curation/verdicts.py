"""What the gates say: of every image its scores, its reasons and one verdict, and one verdict about the whole batch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

PASS, BORDERLINE, FAIL = "pass", "borderline", "fail"

REJECTING = (
    "unreadable",
    "bad_box",
    "bad_label",
    "leakage",
    "memorised",
    "too_many_boxes",
    "low_score",
    "label_disagreement",
    "off_prompt",
    "off_domain",
    "collapsed",
    "duplicate",
)
NEAR_SOURCE = "near_source"  # says something about an image and rejects nothing
TAGS = (*REJECTING, NEAR_SOURCE)
FINAL = ("unreadable", "bad_box", "bad_label", "leakage")  # a person cannot overrule these


@dataclass(frozen=True)
class Verdict:
    """The gates' word on one generated image.

    Attributes:
        image_id: id in annotations.json.
        accepted: training may use it: it passes, or it is borderline and `review.accept_borderline` is set.
        reasons: names out of TAGS, in its order: gates that it fails, and tags; an accepted image may carry a tag.
        scores: every score that is defined for the image, by name (see `engine.curation.gates`).
        note: the reasons in words, with the files and figures they rest on.
        doubts: names out of REJECTING: gates that it passes so narrowly that a person should look.
    """

    image_id: int
    accepted: bool
    reasons: tuple[str, ...] = ()
    scores: dict[str, float] = field(default_factory=dict)
    note: str = ""
    doubts: tuple[str, ...] = ()

    @property
    def outcome(self) -> str:
        """PASS, BORDERLINE or FAIL."""
        if any(reason in REJECTING for reason in self.reasons):
            return FAIL
        return BORDERLINE if self.doubts else PASS


@dataclass(frozen=True)
class Batch:
    """The gates' word on all images together.

    Attributes:
        outcome: FAIL: the images, or a large part of them, are much more alike than real ones; BORDERLINE: some are, or
            nearly so; PASS; None: there are too few images to tell.
        figures: what was compared ("hash", "features") -> {generated, real, ratio, clump}: see
            `engine.curation.collapse`.
        note: the outcome in words.
    """

    outcome: str | None = None
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Judgement:
    """One verdict per image, in the dataset's order, and one about the batch."""

    verdicts: tuple[Verdict, ...]
    batch: Batch = Batch()

    def counts(self) -> dict[str, dict[str, int]]:
        """{verdicts: {pass, borderline, fail}, which add up to the images; fail, borderline, tags: {reason: images}}.

        An image with two reasons counts for both.
        """
        outcomes = Counter(verdict.outcome for verdict in self.verdicts)
        reasons = Counter(reason for verdict in self.verdicts for reason in verdict.reasons)
        doubts = Counter(doubt for verdict in self.verdicts for doubt in verdict.doubts)
        return {
            "verdicts": {word: outcomes[word] for word in (PASS, BORDERLINE, FAIL)},
            "fail": {name: reasons[name] for name in REJECTING if reasons[name]},
            "borderline": {name: doubts[name] for name in REJECTING if doubts[name]},
            "tags": {NEAR_SOURCE: reasons[NEAR_SOURCE]} if reasons[NEAR_SOURCE] else {},
        }


def grade(value: float, minimum: float, margin: float) -> str:
    """FAIL below the minimum, BORDERLINE from there up to less than `margin` above it, else PASS."""
    if value < minimum:
        return FAIL
    return BORDERLINE if value < minimum + margin else PASS


@dataclass
class Findings:
    """Scores and reasons of one image while the gates run. failures, doubts, tags: reason -> words."""

    scores: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    doubts: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, outcome: str, words: str) -> None:
        """Note what one gate found; of several findings of one reason the first of the worst holds."""
        if outcome == FAIL:
            self.failures.setdefault(reason, words)
        elif outcome == BORDERLINE:
            self.doubts.setdefault(reason, words)

    def verdict(self, image_id: int, accept_borderline: bool) -> Verdict:
        """The verdict that follows. Its note starts with what decided: decisions.json is counted by that word."""
        doubts = tuple(name for name in REJECTING if name in self.doubts and name not in self.failures)
        failures = tuple(name for name in REJECTING if name in self.failures)
        notes = [f"{name}: {self.failures[name]}" for name in failures]
        notes += [f"{BORDERLINE}: {name}: {self.doubts[name]}" for name in doubts]
        notes += [f"{name}: {words}" for name, words in self.tags.items()]
        accepted = not failures and (accept_borderline or not doubts)
        return Verdict(image_id, accepted, (*failures, *self.tags), dict(self.scores), "; ".join(notes), doubts)
