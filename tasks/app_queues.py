"""Who has a dataset open in the App, and the reviewers' queues in it.

FiftyOne lets two browsers, or a browser and a script, undo each other's work on one sample. So a dataset is open either
in one App, or in one App for each reviewer, whose queues have no image in common; and nobody loads it anew meanwhile.
The locks are the kernel's: those of a killed process are free.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from engine.curation.queues import checked_reviewers, share_out
from engine.errors import ConfigError
from tasks.fiftyone_boxes import GENERATED_SLICE
from tasks.fiftyone_dataset import QUEUE
from tasks.fiftyone_views import save_queues
from tasks.home import home_folder

REVIEWER = "DE_REVIEWER"  # environment variable of an App's server: who sits at its browser


@contextmanager
def dataset_to_itself(name: str) -> Iterator[int]:
    """Hold a FiftyOne dataset that is open nowhere else. Yields the descriptor of the lock.

    Raises:
        ConfigError: it is open in the App.
    """
    with _lock(name, fcntl.LOCK_EX) as descriptor:
        if descriptor is None:
            raise ConfigError(
                f"{name} is open in the App, where whoever writes to it would undo what is being edited. Close the App "
                "(Ctrl-C) and try again, or fetch what was decided so far: de review DIR --real DIR --collect."
            )
        yield descriptor


@contextmanager
def opened(name: str, reviewer: str | None) -> Iterator[tuple[int, ...]]:
    """Hold a dataset for an App: for a reviewer beside others, else alone. Yields the locks' descriptors, which the
    App's server inherits: it may outlive the process that started it.

    Raises:
        ConfigError: it is open already, in an App that this one would get in the way of.
    """
    with ExitStack() as held:
        shared = held.enter_context(_lock(name, fcntl.LOCK_EX if reviewer is None else fcntl.LOCK_SH))
        if shared is None:
            how = " for everyone" if reviewer else ""
            raise ConfigError(
                f"{name} is open in another App{how}, or being loaded. Use that one, or close it first (Ctrl-C). "
                "Several people share a dataset out with --reviewer NAME --reviewers NAME,NAME."
            )
        own = held.enter_context(_lock(f"{name}.{reviewer}", fcntl.LOCK_EX)) if reviewer else None
        if reviewer and own is None:
            raise ConfigError(
                f"{name} is open in another App for {reviewer}. Use that one, or close it first (Ctrl-C)."
            )
        yield tuple(lock for lock in (shared, own) if lock is not None)


def arrange(fiftyone, name: str, reviewer: str | None, reviewers: Sequence[str]) -> None:
    """Share a loaded dataset out between reviewers, unless it is already.

    Args:
        reviewer: who opens it; None for one App for all.
        reviewers: all of them; none given are those that shared it the last time, or `reviewer` alone.

    Raises:
        ConfigError: the reviewer is none of the reviewers; or others share it and have it open.
    """
    dataset = fiftyone.load_dataset(name, reload=True)
    if not dataset.has_field(QUEUE):  # loaded before there were queues
        dataset.add_sample_field(QUEUE, fiftyone.StringField)
    before = tuple(dataset.info.get("reviewers") or ())
    wanted = checked_reviewers(reviewers) or before or checked_reviewers([reviewer] if reviewer else [])
    if reviewer and reviewer not in wanted:
        raise ConfigError(f"{reviewer} is none of the reviewers {', '.join(wanted)}. Name all of them: --reviewers.")
    if wanted == before:
        return
    with _lock(name, fcntl.LOCK_EX) as alone:
        if alone is None:
            raise ConfigError(
                f"{name} is open, shared out between {', '.join(before) or 'nobody'}. Close every App of it before it "
                f"is shared out between {', '.join(wanted)}."
            )
        view = dataset.select_group_slices(GENERATED_SLICE)
        ids, image_ids = view.values(["id", "image_id"])
        owner = share_out(image_ids, wanted)
        dataset.set_values(QUEUE, {i: owner.get(n) for i, n in zip(ids, image_ids, strict=True)}, key_field="id")
        dataset.info["reviewers"] = list(wanted)
        dataset.save()
        save_queues(fiftyone, dataset, wanted)


@contextmanager
def _lock(name: str, kind: int) -> Iterator[int | None]:
    """The descriptor of a lock, or None where another process holds it."""
    folder = home_folder() / "open"
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)
