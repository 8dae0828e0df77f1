"""Decisions that a person makes in the App, as tags: `tasks.collect` reads them, and nothing else is written.

Tags are added and taken away one by one in the database: writing a sample whole would undo what somebody else just did.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from engine.curation.queues import decided_tag, is_decided_tag
from engine.curation.reviewer import ACCEPTED, REJECTED
from engine.curation.verdicts import FINAL, PASS
from engine.errors import ConfigError
from tasks.fiftyone_boxes import GENERATED_SLICE
from tasks.fiftyone_dataset import QUEUE

REASONS = ("blurry", "unrealistic", "wrong boxes", "missing boxes", "wrong class", "too much alike", "other")
_LISTED = 10


@dataclass(frozen=True)
class Row:
    """A generated image in FiftyOne. sample_id: its key there; queue: whose queue it is in, if it is in one."""

    sample_id: str
    image_id: int
    tags: tuple[str, ...]
    reasons: tuple[str, ...]
    gates: str
    queue: str | None


Change = tuple[tuple[str, ...], tuple[str, ...]]  # tags to add, tags to take away


def accept(dataset, sample_ids: Sequence[str], journal, reviewer: str | None = None) -> str:
    """Accept images. Says what came of it: what fails a final gate stays as it is.

    Args:
        dataset: as loaded by `tasks.fiftyone_dataset`.
        sample_ids: of generated images; others are passed over.
        journal: a store of the operators, for `undo`.
        reviewer: who decides, if that is known.

    Raises:
        ConfigError: no generated image is among them, or one is in another reviewer's queue.
    """
    rows = chosen(dataset, sample_ids, reviewer)
    refused = [row for row in rows if set(row.reasons) & set(FINAL)]
    decided = [row for row in rows if row not in refused]
    _decide(dataset, decided, (ACCEPTED, decided_tag(reviewer)), (REJECTED, *REASONS), journal)
    return " ".join([f"{_images(decided)} accepted.", *_refusal(refused)])


def reject(dataset, sample_ids: Sequence[str], reason: str, journal, reviewer: str | None = None) -> str:
    """Reject images for one of REASONS, instead of any of them that was given before.

    Raises:
        ConfigError: an unknown reason, no generated image is among them, or one is in another reviewer's queue.
    """
    if reason not in REASONS:
        raise ConfigError(f"{reason!r} is no reason to reject. Reasons: {', '.join(REASONS)}.")
    rows = chosen(dataset, sample_ids, reviewer)
    others = tuple(word for word in REASONS if word != reason)
    _decide(dataset, rows, (REJECTED, reason, decided_tag(reviewer)), (ACCEPTED, *others), journal)
    return f"{_images(rows)} rejected: {reason}."


def accept_passing(dataset, view, journal, reviewer: str | None = None) -> str:
    """Accept every image of a view that passes the gates, also those that a person rejected, but none in another
    reviewer's queue; says how many."""
    passing = [row for row in _rows(dataset, view.values("id")) if row.gates == PASS and not _foreign(row, reviewer)]
    turned = [row for row in passing if ACCEPTED not in row.tags or REJECTED in row.tags]
    _decide(dataset, passing, (ACCEPTED, decided_tag(reviewer)), (REJECTED, *REASONS), journal)
    kept = len(passing) - len(turned)
    return f"{_images(passing)} of this view pass the gates: {len(turned)} accepted now, {kept} were already."


def undo(dataset, sample_ids: Sequence[str], journal, reviewer: str | None = None) -> str:
    """Take back the last decision about each of these images that was made by the functions above.

    Raises:
        ConfigError: no generated image is among them, or one is in another reviewer's queue.
    """
    rows = {row.sample_id: row for row in chosen(dataset, sample_ids, reviewer)}
    waiting, back = set(rows), {}
    for key in sorted(journal.list_keys(), reverse=True):
        entry = journal.get(key) or {}
        found = waiting & set(entry)
        back |= {sample_id: (tuple(entry[sample_id][1]), tuple(entry[sample_id][0])) for sample_id in found}
        waiting -= found
        left = {sample_id: change for sample_id, change in entry.items() if sample_id not in found}
        if found and left:
            journal.set(key, left)
        elif found:
            journal.delete(key)
        if not waiting:
            break
    _apply(dataset, back)
    nothing = f" Nothing to take back on {_images(list(waiting))}." if waiting else ""
    return f"The last decision on {_images(list(back))} is taken back.{nothing}"


def chosen(dataset, sample_ids: Sequence[str], reviewer: str | None = None) -> list[Row]:
    """The generated images among samples.

    Raises:
        ConfigError: there is none, or one is in the queue of another than `reviewer`.
    """
    rows = _rows(dataset, sample_ids)
    if not rows:
        raise ConfigError("Select generated images first; about the real ones beside them nothing is decided.")
    foreign = [row for row in rows if _foreign(row, reviewer)]
    if foreign:
        named = ", ".join(f"{row.image_id} ({row.queue})" for row in foreign[:_LISTED])
        more = f" and {len(foreign) - _LISTED} more" if len(foreign) > _LISTED else ""
        raise ConfigError(f"Nothing is done: images of other reviewers' queues are among them: {named}{more}.")
    return rows


def _foreign(row: Row, reviewer: str | None) -> bool:
    return reviewer is not None and row.queue not in (None, reviewer)


def _rows(dataset, sample_ids: Sequence[str]) -> list[Row]:
    """Read from the database: samples in memory may be out of date."""
    view = dataset.select_group_slices(GENERATED_SLICE).select(list(sample_ids))
    columns = view.values(["id", "image_id", "tags", "reasons", "gates", QUEUE])
    return [
        Row(i, n, tuple(tags or ()), tuple(why or ()), gates, queue)
        for i, n, tags, why, gates, queue in zip(*columns, strict=True)
    ]


def _decide(dataset, rows: Iterable[Row], add: Sequence[str], take: Sequence[str], journal) -> None:
    """Change the tags, and note what is really changed, before it is."""
    changes: dict[str, Change] = {}
    for row in rows:
        added = tuple(tag for tag in add if tag not in row.tags)
        taken = tuple(tag for tag in row.tags if tag not in add and (tag in take or is_decided_tag(tag)))
        if added or taken:
            changes[row.sample_id] = (added, taken)
    if changes:
        journal.set(f"{time.time_ns():020d}", {key: [list(tags) for tags in change] for key, change in changes.items()})
    _apply(dataset, changes)


def _apply(dataset, changes: Mapping[str, Change]) -> None:
    together: dict[Change, list[str]] = {}
    for sample_id, change in changes.items():
        together.setdefault(change, []).append(sample_id)
    for (add, take), sample_ids in together.items():
        view = dataset.select_group_slices(GENERATED_SLICE).select(sample_ids)
        if add:
            view.tag_samples(list(add))
        if take:
            view.untag_samples(list(take))


def _images(entries: Sequence) -> str:
    return f"{len(entries)} image{'' if len(entries) == 1 else 's'}"


def _refusal(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    named = [f"image {row.image_id} ({next(r for r in row.reasons if r in FINAL)})" for row in rows[:_LISTED]]
    more = f" and {len(rows) - _LISTED} more" if len(rows) > _LISTED else ""
    return [f"{_images(rows)} cannot be accepted by anyone: {', '.join(named)}{more}. Final are {', '.join(FINAL)}."]
