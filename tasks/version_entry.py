"""What is known of a version: `versions/<tag>.json`, a small file in git beside the tag.

The tag holds what was known when it was made. Comparisons and verdicts come later: they change the file, by commits of
their own, and never the tag.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engine.data.files import write_atomically
from engine.errors import DatasetError

FOLDER, FORMAT = "versions", 1
DATASET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
TAG = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]*)-v(\d+)")
CANDIDATE, PROMOTED, REJECTED = VERDICTS = ("candidate", "promoted", "rejected")


@dataclass(frozen=True)
class Version:
    """A version of a dataset or checkpoint.

    Attributes:
        name: its tag in git, <dataset>-v<N>.
        stage: of dvc.yaml, which wrote it.
        kind: "generated dataset", "dataset", "adapter", "diffusion model" or "other".
        size_bytes, files: of its outputs.
        outputs: {path, md5, size, nfiles} as in dvc.lock.
        parents: by option of the step (data, ldm, adapter): path or id, digests, and the version where it is one.
        content: digests that are the same wherever the folder lies, see `engine.generation.contents`.
        metrics: adapter_ap, 0 to 1, on validation images; comparison: {difference, ci95, outcome, ...}, in mAP 0 to 1.
        verdict, reason: candidate, promoted or rejected, and why.
        date: of the tag, ISO 8601. Not in the file.
        note: why nothing more is known. Not in the file.
    """

    name: str
    stage: str
    kind: str
    size_bytes: int
    files: int
    outputs: tuple[Mapping, ...] = ()
    parents: Mapping[str, Mapping] = field(default_factory=dict)
    content: Mapping[str, str | None] = field(default_factory=dict)
    metrics: Mapping = field(default_factory=dict)
    verdict: str = CANDIDATE
    reason: str = "recorded, not judged yet"
    date: str = ""
    note: str = ""

    @property
    def dataset(self) -> str:
        """The name without the number."""
        return TAG.fullmatch(self.name)[1]

    @property
    def number(self) -> int:
        return int(TAG.fullmatch(self.name)[2])

    def as_dict(self) -> dict:
        """Json-ready."""
        return dataclasses.asdict(self)


def path_of(name: str) -> str:
    """Of a version's file, from the workspace."""
    return f"{FOLDER}/{name}.json"


def write_version(workspace: Path, version: Version) -> str:
    """Write the version's file, whole or not at all. Returns its path from the workspace."""
    content = {"format": FORMAT, **version.as_dict()}
    del content["date"], content["note"]
    path = workspace / path_of(version.name)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())
    return path_of(version.name)


def parse_version(content: bytes, name: str) -> Version:
    """The version that a file tells of.

    Raises:
        DatasetError: the file is broken, of another format, or tells of another version.
    """
    try:
        values = json.loads(content)
        if values.pop("format") != FORMAT or values["name"] != name:
            raise ValueError(f"it is not of version {name} in format {FORMAT}")
        version = Version(**values | {"outputs": tuple(values["outputs"])})
        if version.verdict not in VERDICTS:
            raise ValueError(f"the verdict {version.verdict!r} is unknown")
        _check_types(version)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DatasetError(
            f"{path_of(name)} cannot be read ({type(error).__name__}: {error}). "
            f"`git checkout {name} -- {path_of(name)}` brings back what was known when it was recorded."
        ) from None
    return version


def _check_types(version: Version) -> None:
    """Whoever shows or compares versions relies on these."""
    for field_ in dataclasses.fields(Version):
        value, wanted = getattr(version, field_.name), field_.type
        kinds = {"str": str, "int": int, "tuple[Mapping, ...]": tuple}.get(wanted, Mapping)
        if not isinstance(value, kinds):
            raise TypeError(f"'{field_.name}' is {value!r}")
    for part in (*version.outputs, *version.parents.values()):
        if not isinstance(part, Mapping):
            raise TypeError(f"{part!r} where an object belongs")
    score = version.metrics.get("adapter_ap")
    if score is not None and not isinstance(score, int | float):
        raise TypeError(f"'adapter_ap' is {score!r}")
    comparison = version.metrics.get("comparison")
    if comparison is not None:
        [float(value) for value in (comparison["difference"], *comparison["ci95"])]
