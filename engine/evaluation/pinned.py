"""Which data a comparison was made on, by digests that do not depend on where it lay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from engine.data.dataset import Dataset
from engine.generation.contents import BASELINE, GENERATED, generated_content, kind_of

VersionOf = Callable[[Mapping[str, str | None]], str | None]


def no_version(content: Mapping[str, str | None]) -> None:
    """Where nobody keeps versions."""


def trained_on(
    real: tuple[Path, Mapping[str, str | None]],
    generated: tuple[Path, Dataset],
    further: Mapping[str, tuple[Path, Dataset]],
    version_of: VersionOf,
) -> dict:
    """{real, generated, further: {arm: ...}} of {folder: its name, content: digests, version: its tag or None}.

    Args:
        real: the folder, and the digest of each split that was used.
        generated, further: folders, and their images that training may use.
        version_of: the tag of the version that has these digests.

    Raises:
        DatasetError: a manifest.json that cannot be read.
    """

    def pinned(folder: Path, content: Mapping[str, str | None]) -> dict:
        return {"folder": folder.absolute().name, "content": dict(content), "version": version_of(content)}

    return {
        "real": pinned(*real),
        "generated": pinned(generated[0], _content(*generated)),
        "further": {name: pinned(folder, _content(folder, data)) for name, (folder, data) in further.items()},
    }


def _content(folder: Path, accepted: Dataset) -> dict[str, str | None]:
    """A dataset of this engine says by itself what pins it; of another one the pictures are read."""
    return (
        generated_content(folder) if kind_of(folder) in (GENERATED, BASELINE) else {accepted.split: accepted.digest()}
    )
