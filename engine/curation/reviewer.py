"""How the gates' verdicts and a person's word become decisions. Pure rules, no files and no database."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

from engine.curation.decisions import Decisions
from engine.curation.label_gates import box_scores
from engine.curation.queues import decided_by, is_decided_tag
from engine.curation.verdicts import BORDERLINE, FINAL, REJECTING, TAGS, Verdict
from engine.data.dataset import Dataset

log = logging.getLogger(__name__)

ACCEPTED, REJECTED = "accepted", "rejected"


@dataclass(frozen=True)
class Shown:
    """One image as a person sees it: its tags now, and verdict, reasons and note as they were loaded."""

    image_id: int
    tags: tuple[str, ...]
    verdict: str
    reasons: tuple[str, ...] = ()
    note: str = ""


def decide(verdicts: Sequence[Verdict], earlier: Decisions | None = None) -> Decisions:
    """What holds: a person's earlier word where there is one, else the gates'.

    An image that fails one of the gates in FINAL (unreadable, unusable labels, a leak) stays rejected whatever a person
    said.
    """
    words = dict(earlier.reviewer) if earlier else {}
    accepted, rejected = set(), {}
    for verdict in verdicts:
        final = [reason for reason in verdict.reasons if reason in FINAL]
        if final and words.pop(verdict.image_id, False):
            log.warning("Image %d stays rejected (%s): no reviewer can accept that.", verdict.image_id, final[0])
        if words.get(verdict.image_id, verdict.accepted):
            accepted.add(verdict.image_id)
        elif verdict.accepted:
            rejected[verdict.image_id] = earlier.rejected.get(verdict.image_id, "reviewer")
        else:
            rejected[verdict.image_id] = verdict.note
    names = {i: name for i, name in earlier.decided_by.items() if i in words} if earlier else {}
    return Decisions(frozenset(accepted), rejected, words, names)


def merge_edits(shown: Sequence[Shown], current: Decisions) -> Decisions:
    """Take over what a person changed by tags.

    An image that carries both the accepted and the rejected tag, or neither, was turned round by the person: the tag
    that it was loaded with no longer holds alone. A tag that says who decided makes it that person's word also where it
    agrees with the gates. What was decided and then undone in the App is undone here. Images that the person left alone
    keep what `current` says.
    """
    words, names = dict(current.reviewer), dict(current.decided_by)
    accepted, rejected = set(current.accepted), dict(current.rejected)
    for image in shown:
        word = _word(image)
        decided = any(is_decided_tag(tag) for tag in image.tags) and not set(image.reasons) & set(FINAL)
        if decided or (word == ACCEPTED) != (image.verdict == ACCEPTED) or image.image_id in words:
            words[image.image_id] = word == ACCEPTED
            names[image.image_id] = decided_by(image.tags)
        elif image.image_id in accepted or image.image_id in rejected:
            continue
        if word == ACCEPTED:
            accepted.add(image.image_id)
            rejected.pop(image.image_id, None)
        else:
            accepted.discard(image.image_id)
            rejected[image.image_id] = _reason(image, rejected.get(image.image_id))
    return Decisions(frozenset(accepted), rejected, words, {i: name for i, name in names.items() if name})


def recall_verdicts(decisions: Decisions, dataset: Dataset) -> list[Verdict]:
    """The gates' verdicts as far as decisions.json remembers them: for showing a folder that has no gates.json."""
    verdicts = []
    for image in dataset.images:
        note = decisions.rejected.get(image.id, "")
        named = set(re.findall(rf"(?:^|; )({'|'.join(REJECTING)}): ", note))
        reasons = tuple(reason for reason in REJECTING if reason in named)
        scores = box_scores(dataset, image.id)
        verdicts.append(Verdict(image.id, image.id in decisions.accepted, reasons, scores, note))
    return verdicts


def _word(image: Shown) -> str:
    if set(image.reasons) & set(FINAL):
        return REJECTED
    decided = {ACCEPTED, REJECTED} & set(image.tags)
    if len(decided) == 1:
        return decided.pop()
    return REJECTED if image.verdict == ACCEPTED else ACCEPTED


def _reason(image: Shown, known: str | None) -> str:
    """Why a person's rejection holds: the gates' note if they rejected it too, else the person's own tags."""
    known = known or (image.note if image.verdict == REJECTED else None)
    own = sorted(t for t in image.tags if t not in {ACCEPTED, REJECTED, BORDERLINE, *TAGS} and not is_decided_tag(t))
    if known and not (own and known.startswith("reviewer")):
        return known
    return f"reviewer: {', '.join(own)}" if own else "reviewer"
