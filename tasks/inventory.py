"""What lies in a workspace, read from its files: datasets, generated datasets, models, adapters, comparisons.

Each kind of folder is known by a file in it. What cannot be read is named with the reason, and hides nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.adapter.card import CARD, read_card
from engine.data.dataset import splits_of
from engine.data.parts import dataset_parts
from engine.data.sources import UNLABELLED, has_unlabelled
from engine.errors import UserError
from engine.evaluation.results import read_results
from engine.generation.run_file import read_run
from engine.ldm.folder import INDEX, read_adaptation
from tasks.generated_run import GeneratedRun, read_generated
from tasks.scores import summarise, verdict_line

DEPTH = 4  # folders below the workspace
_NOT_SEARCHED = {"images", "shards", "arms", "node_modules", "__pycache__"}
GENERATED, DATASET, ADAPTER, LDM, COMPARISON = "generated", "dataset", "adapter", "ldm", "comparison"


@dataclass(frozen=True)
class RealDataset:
    """Images and boxes of each split."""

    images: dict[str, int]
    boxes: dict[str, int]


@dataclass(frozen=True)
class AdapterFolder:
    """From its card: AP (0 to 1) on the validation images, None where there were none; what it reads, what it knows."""

    ap: float | None
    head: str
    classes: int
    ldm: str


@dataclass(frozen=True)
class LdmFolder:
    """The model that it was fitted from, and how ("full", "lora"); both None for one that was not fitted here."""

    base: str | None
    method: str | None


@dataclass(frozen=True)
class ComparisonFolder:
    """The answer in one sentence, and the number of trainings of each arm."""

    verdict: str
    seeds: int


@dataclass(frozen=True)
class Found:
    """A folder of the workspace.

    Attributes:
        kind: a key of READERS.
        folder: relative to the workspace.
        disk_bytes: what its files take, hard links counted once, folders that are named for themselves left out.
        content: None where it cannot be read.
        problem: why.
    """

    kind: str
    folder: str
    disk_bytes: int
    content: RealDataset | GeneratedRun | AdapterFolder | LdmFolder | ComparisonFolder | None
    problem: str | None = None


def take_stock(workspace: Path, without: Path | None = None) -> list[Found]:
    """Every folder of a known kind, at most DEPTH levels down, in order of kind and name; `without` is not searched."""
    kinds = {Path(folder): kind for folder, kind in _known_folders(workspace, without)}
    found = []
    for folder, kind in kinds.items():
        inner = {other for other in kinds if other != folder and other.is_relative_to(folder)}
        name, size = str(folder.relative_to(workspace)), disk_bytes(folder, inner)
        try:
            found.append(Found(kind, name, size, READERS[kind](folder)))
        except (UserError, OSError) as error:
            found.append(Found(kind, name, size, None, str(error)))
    return sorted(found, key=lambda entry: (list(READERS).index(entry.kind), entry.folder))


def generated_folders(workspace: Path) -> list[Path]:
    """The folders of generated datasets, finished or not, known by their names alone."""
    return [Path(folder) for folder, kind in _known_folders(workspace) if kind == GENERATED]


def disk_bytes(folder: Path, without: set[Path] = frozenset()) -> int:
    """What a folder's files take on the disk; hard links count once, links are not followed."""
    seen, total = set(), 0
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if Path(parent, name) not in without]
        for name in names:
            try:
                stat = os.lstat(os.path.join(parent, name))
            except OSError:  # gone while we look
                continue
            if (stat.st_dev, stat.st_ino) not in seen:
                seen.add((stat.st_dev, stat.st_ino))
                total += stat.st_blocks * 512
    return total


def _known_folders(workspace: Path, without: Path | None = None) -> Iterator[tuple[str, str]]:
    """(folder, kind); what lies inside a known folder is its own business, except beside a comparison."""
    for parent, folders, names in os.walk(workspace):
        kind = _kind(Path(parent), set(names), set(folders))
        if kind:
            yield parent, kind
        deep = len(Path(parent).relative_to(workspace).parts) >= DEPTH
        if deep or kind not in (None, COMPARISON) or "pyvenv.cfg" in names:
            folders.clear()
        searched = (name for name in folders if not name.startswith(".") and name not in _NOT_SEARCHED)
        folders[:] = sorted(name for name in searched if Path(parent, name) != without)


def _kind(folder: Path, files: set[str], folders: set[str]) -> str | None:
    if (
        "plan.json" in files
        or {"annotations.json", "manifest.json"} <= files
        or "run.json" in files
        and _is_run(folder)
    ):
        return GENERATED
    if CARD in files:
        return ADAPTER
    if INDEX in files:
        return LDM
    if "results.json" in files:
        return COMPARISON
    return DATASET if "images" in folders and splits_of(folder) else None


def _is_run(folder: Path) -> bool:
    """Other programs write a run.json too."""
    try:
        read_run(folder)
    except UserError:
        return False
    return True


def _read_dataset(folder: Path) -> RealDataset:
    images, boxes = {}, {}
    for split in [*splits_of(folder), *([UNLABELLED] if has_unlabelled(folder) else [])]:
        images[split] = boxes[split] = 0
        for part in dataset_parts(folder, split):
            images[split] += len(part.images)
            boxes[split] += len(part.annotations)
    return RealDataset(images, boxes)


def _read_adapter(folder: Path) -> AdapterFolder:
    card = read_card(folder)
    measured = card.get("validation") or {}
    return AdapterFolder(measured.get("map"), card["head"].get("head", "?"), len(card["classes"]), card["ldm"]["id"])


def _read_ldm(folder: Path) -> LdmFolder:
    base, method = read_adaptation(folder)
    return LdmFolder(base and base["id"], method)


def _read_comparison(folder: Path) -> ComparisonFolder:
    results = read_results(folder / "results.json")
    return ComparisonFolder(verdict_line(summarise(results, folder)), len(results["seeds"]))


READERS: dict[str, Callable] = {
    DATASET: _read_dataset,
    LDM: _read_ldm,
    ADAPTER: _read_adapter,
    GENERATED: read_generated,
    COMPARISON: _read_comparison,
}
